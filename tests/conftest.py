from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from commands import Shell
from patchcore.synthetic.generate import generate


@pytest.fixture(autouse=True)
def package_log() -> Iterator[None]:
    """Commands send the package's log to the terminal alone; the next test must see it again."""
    log = logging.getLogger("patchcore")
    before = log.level, log.handlers, log.propagate
    yield
    log.level, log.handlers, log.propagate = before


@pytest.fixture
def shell(capsys) -> Shell:
    """Runs the scripts' commands in this process."""
    return Shell(capsys)


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """A very small synthetic set of two categories, shared by all tests: read it, do not write to it."""
    root = tmp_path_factory.mktemp("synthetic parts")
    generate(root, categories=("metal_plate", "bracket_white"), num_train=6, num_test_good=3, num_per_defect=2, size=96)
    return root


@pytest.fixture(scope="module")
def one_thread():
    """Small tensors gain nothing from more, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
