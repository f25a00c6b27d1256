"""What a run says of the software and hardware that its results depend on."""

from __future__ import annotations

import builtins
from importlib import metadata

import pytest
import torch

from patchcore.system import environment


def test_every_version_is_a_plain_string():
    found = environment.environment()
    assert found["torch"] == torch.__version__
    assert all(type(value) is str and value for value in found.values())


def test_faiss_is_named_with_its_package():
    faiss = pytest.importorskip("faiss")
    version = environment.faiss_version()
    assert version.startswith(f"{faiss.__version__} (")
    package = version.partition("(")[2].rstrip(")")
    assert package == "of an unknown package" or metadata.version(package)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("no faiss"), "not installed"),
        (ImportError("libcudart.so.12: not found"), "not usable: ImportError: libcudart.so.12: not found"),
        (RuntimeError("libcudart.so.12:\nnot found"), "not usable: RuntimeError: libcudart.so.12: not found"),
    ],
)
def test_faiss_that_cannot_be_imported_ends_nothing(monkeypatch, error, said):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "faiss":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert environment.environment()["faiss"] == said


def test_the_processor_has_a_name():
    assert environment.processor()
