"""Files and folders are written whole or not at all."""

from __future__ import annotations

import pytest

from patchcore.system.files import atomic_write, remove_leftovers, remove_unless
from patchcore.types import PatchCoreError


def test_a_file_appears_when_it_is_whole_and_replaces_the_old(tmp_path):
    path = tmp_path / "new folder" / "x.txt"
    for text in ("old", "new"):
        with atomic_write(path) as aside:
            aside.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["x.txt"]


def test_what_a_process_that_was_killed_left_is_removed(tmp_path):
    (tmp_path / "deep").mkdir()
    kept = [tmp_path / ".mine.tmp", tmp_path / "deep" / ("0" * 32 + ".tmp")]
    for path in kept:
        path.write_text("kept")
    with atomic_write(tmp_path / "deep" / "x") as aside:
        aside.write_text("moved")
        (tmp_path / aside.name).write_text("left")
        (tmp_path / "deep" / f"{aside.name[:-5]}{'0' if aside.name[-5] != '0' else '1'}.tmp").write_text("left")
    kept.append(tmp_path / "deep" / "x")
    remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


@pytest.mark.parametrize("folder", [False, True])
def test_a_body_that_fails_leaves_nothing(tmp_path, folder):
    def write():
        with atomic_write(tmp_path / "x") as aside:
            if folder:
                aside.mkdir()
                (aside / "y").write_text("half")
            else:
                aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("")
    with pytest.raises(PatchCoreError, match=r"cannot write .*x: "), atomic_write(tmp_path / "x") as aside:
        aside.mkdir()
    assert [file.name for file in tmp_path.rglob("*")] == ["x", "mine"]


def test_what_the_system_refuses_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PatchCoreError, match=r"cannot write .*file.x: "), atomic_write(tmp_path / "file" / "x"):
        pass


@pytest.mark.parametrize("wanted", [True, False])
def test_a_folder_is_removed_unless_it_is_wanted(tmp_path, wanted):
    folder = tmp_path / "results" / "project" / "run"
    folder.mkdir(parents=True)
    (tmp_path / "results" / "mine").write_text("")
    with remove_unless([folder, folder.parent, folder.parent.parent], lambda: wanted):
        (folder / "log").write_text("")
    assert folder.exists() == folder.parent.exists() == wanted
    assert (tmp_path / "results" / "mine").exists()


def test_a_folder_is_removed_after_an_error_too(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match="x"), remove_unless([tmp_path / "run"], lambda: False):
        raise OSError("x")
    assert not (tmp_path / "run").exists()
