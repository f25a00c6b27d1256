"""What a method is, to all who run, store or load one without knowing which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from patchcore.config import CALIBRATIONS


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a method's command line, behind a word of its own.

    Attributes:
        word: begins the stage, such as "sampler".
        settings: names of the fields of the method's configuration that are given in it.
        help: what is chosen in it.
        epilog: what else its help says.
        ignored: options without effect, accepted at these values only: option strings -> value.
    """

    word: str
    settings: tuple[str, ...]
    help: str
    epilog: str = ""
    ignored: Mapping[tuple[str, ...], Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method: its settings, its command line and its detector, which is imported when it is asked for.

    Attributes:
        name: in stored models and `config.yaml`.
        title: for people.
        config: the frozen dataclass of its settings, of `patchcore.settings`; has `weights` if backbones need any.
        stages: of the command line that trains; the first names the loader's stage.
        detector: the class of its detectors, as "module:name".
        image_size: (configuration, resize or None, imagesize or None) -> resize and imagesize.
        image_size_shown: what the help says of the two where they are left out.
        describe: (configuration) -> what tells configurations apart at a glance: the networks first.
        settings_from: (options) -> settings by name; a ValueError is a wrong use.
        refuse: (configuration, names of the settings that were stated) raises a ValueError for one without effect, or
            warns of it.
        loader_help: what the help of the loader's stage says.
        save_flag: the option of a run that stores the models.
        category_file: the file of configs/ with settings by category, if there is one; the configuration then has a
            bool `class_specific`, set where they came from a file.
        leaves_one_out: whether its detectors can say of a training image what they would say had they not learnt it.
        older: "module:name" of a function (folder, resize or None) -> a model in a format before the present one, None
            if it is not there; `resize` is the shorter side of the images for a format that does not say it.
    """

    name: str
    title: str
    config: type
    stages: tuple[Stage, ...]
    detector: str
    image_size: Callable[[Any, int | None, int | None], tuple[int, int]]
    image_size_shown: tuple[str, str]
    describe: Callable[[Any], tuple[str, ...]]
    settings_from: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    refuse: Callable[[Any, frozenset[str]], None] = lambda config, stated: None
    loader_help: str = "Choose the stored models. Their settings and image size come with them."
    save_flag: str = "--save_model"
    category_file: str | None = None
    leaves_one_out: bool = False
    older: str | None = None

    @property
    def detector_class(self) -> type[Any]:
        """The class of its detectors, a `Detector`, imported now."""
        return _import(self.detector)

    def calibration(self, asked: str | None, *, splits: bool) -> str:
        """How a detector is calibrated: as asked for, or for None as it costs next to nothing.

        Args:
            asked: one of `patchcore.config.CALIBRATIONS`, or None.
            splits: whether training images are held out.

        Raises:
            ValueError: the method cannot do it, or images are held out for nothing, or none are.
        """
        if asked is None:
            return "held_out" if splits else "leave_one_out" if self.leaves_one_out else "none"
        if asked not in CALIBRATIONS:
            raise ValueError(f"calibration must be one of {', '.join(CALIBRATIONS)}, got {asked!r:.80}")
        if asked == "leave_one_out" and not self.leaves_one_out:
            raise ValueError(f"{self.title} cannot leave one image out: calibrate with folds or held_out")
        if asked == "held_out" and not splits:
            raise ValueError("--calibration held_out needs images that are held out: --train_val_split below 1")
        if asked in ("leave_one_out", "folds") and splits:
            raise ValueError(
                f"--calibration {asked} uses every training image, --train_val_split holds some out: give one of them"
            )
        return asked

    def read_older(self, folder: Path, resize: int | None) -> Any:
        """A `StoredModel` in a format before the present one; None if it is not there."""
        return _import(self.older)(folder, resize) if self.older else None

    def refuse_without_effect(self, config: Any, stated: frozenset[str]) -> None:
        """Raise a ValueError if a setting that was stated has no effect in this configuration."""
        if "weights_dir" in stated and getattr(config, "weights", "pretrained") == "random":
            raise ValueError("--weights_dir has no effect with --weights random")
        self.refuse(config, stated)

    def short_name(self, config: Any, imagesize: int, *, stored: bool, by_category: bool) -> str:
        """Mostly enough to tell the columns of a comparison apart."""
        networks, *others = self.describe(config)
        parts = [f"{self.title} {networks}", f"{imagesize} px", *others]
        if by_category:
            parts.append("class-specific")
        if getattr(config, "weights", "pretrained") != "pretrained":
            parts.append(f"{config.weights} weights")
        if stored:
            parts.append("stored")
        return ", ".join(parts)


def _import(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
