"""`predict --watch`: every file that is written into a folder is judged once, when it is whole, also after a kill."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from image_files import noise
from patchcore.cli.predict import predict
from patchcore.inspection import watch as watching
from patchcore.inspection.inspector import Inspector
from patchcore.inspection.overlays import Overlays
from patchcore.inspection.report import Report
from patchcore.inspection.watch import watch
from patchcore.methods.patchcore.detector import PatchCore
from patchcore.results.predictions import OVERLAYS, PREDICTIONS, REGIONS, PredictionFolder
from patchcore.types import Inspected, PatchCoreError, Region, Result

pytestmark = pytest.mark.usefixtures("one_thread")

SECONDS = 20.0  # after which a test gives up waiting


@pytest.fixture(scope="module")
def detector(parts):
    settings = {"backbones": ["efficientnet_lite0"], "layers": [["blocks.1"]], "weights": "random"}
    return PatchCore(**settings, resize=32, imagesize=32, device="cpu").fit(parts / "metal_plate/train/good")


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    detector.save(folder)
    return folder


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watching, "BROKEN_AFTER", 0.5)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "camera").mkdir()
    return tmp_path / "camera"


BASIS = {"model": "one"}


def encoded(seed=0, kind="PNG", size=(40, 30)):
    file = io.BytesIO()
    noise(*size, seed=seed).save(file, kind)
    return file.getvalue()


def rows(folder, name=PREDICTIONS):
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Watched:
    """Watches a folder in this thread while `act` does its work in another, until `count` images were judged."""

    def __init__(self, detector, folder, out, count, act=lambda: None, linger=0.0):
        self.images = []
        self.act_error = None
        writer = threading.Thread(target=self._run, args=(act,))
        end = time.monotonic() + SECONDS

        def stop():
            nonlocal end
            if len(self.images) >= count and not writer.is_alive():
                end = min(end, time.monotonic() + linger)
            return time.monotonic() > end

        with PredictionFolder(out, journal=BASIS) as tables:
            report = Report(
                folder=tables,
                overlays=Overlays(out / OVERLAYS, [folder], detector),
                show=self.images.append,
            )
            writer.start()
            watch(folder, Inspector(detector), report, judged=tables.holds, stop=stop)
        writer.join()
        self.names = [image.path.name for image in self.images]
        if self.act_error:
            raise self.act_error

    def _run(self, act):
        try:
            act()
        except Exception as error:
            self.act_error = error


def test_files_are_judged_when_they_are_whole(detector, folder, tmp_path, quick):
    content = encoded()

    def camera():
        (folder / "one.png").write_bytes(content)
        (folder / "deep").mkdir()
        (folder / "deep" / "moved.jpg.tmp").write_bytes(encoded(1, "JPEG"))
        (folder / ".hidden.png").write_bytes(content)
        (folder / "notes.txt").write_bytes(content)
        with (folder / "pieces.png").open("wb") as file:
            for start in range(0, len(content), 1000):
                file.write(content[start : start + 1000])
                file.flush()
                time.sleep(0.12)
        (folder / "deep" / "moved.jpg.tmp").rename(folder / "deep" / "moved.jpg")

    watched = Watched(detector, folder, tmp_path / "out", 3, camera, linger=0.3)
    assert watched.names == ["one.png", "pieces.png", "moved.jpg"]
    assert all(image.result for image in watched.images)
    found = rows(tmp_path / "out")
    assert [row["path"] for row in found] == [str(image.path) for image in watched.images]
    for row, image in zip(found, watched.images, strict=True):
        state = image.path.stat()
        assert (int(row["bytes"]), int(row["modified"])) == (state.st_size, state.st_mtime_ns) == image.state
        assert float(row["score"]) == image.result.score
    assert {row["path"] for row in rows(tmp_path / "out", REGIONS)} <= {row["path"] for row in found}
    assert (tmp_path / "out" / "overlays" / "deep" / "moved.jpg.png").is_file()


def last_bytes(kind):
    """A file that decodes without its last bytes, and how many these are; not every one does."""
    for seed, cut in itertools.product(range(200), (12, 1)):
        content = encoded(seed, kind, size=(39 - seed % 3, 30 + seed % 7))
        with suppress(OSError), Image.open(io.BytesIO(content[:-cut])) as image:
            image.load()
            return content, cut
    raise AssertionError(f"no such {kind} file was found")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG"])
def test_a_file_that_decodes_but_has_no_end_is_waited_for(detector, folder, tmp_path, quick, kind):
    content, cut = last_bytes(kind)
    path = folder / f"a.{kind.lower()}"

    def camera():
        with path.open("wb") as file:
            file.write(content[:-cut])
            file.flush()
            time.sleep(0.25)
            file.write(content[-cut:])

    watched = Watched(detector, folder, tmp_path / "out", 1, camera, linger=0.2)
    assert [image.state[0] for image in watched.images] == [len(content)]
    path.write_bytes(content[:-cut])  # it stays as it is
    watched = Watched(detector, folder, tmp_path / "out", 1)
    assert watched.images[0].result is not None


def test_a_broken_file_is_called_so_once_after_it_has_been_quiet(detector, folder, tmp_path, quick):
    (folder / "broken.png").write_bytes(encoded()[:700])
    begin = time.monotonic()
    watched = Watched(detector, folder, tmp_path / "out", 1, linger=0.7)
    assert watched.names == ["broken.png"]
    assert "truncated" in watched.images[0].error
    assert time.monotonic() - begin > watching.BROKEN_AFTER
    assert "truncated" in rows(tmp_path / "out")[0]["error"]
    assert Watched(detector, folder, tmp_path / "out", 0, linger=0.7).names == []
    (folder / "broken.png").write_bytes(encoded())
    assert Watched(detector, folder, tmp_path / "out", 1).images[0].result is not None


def test_a_file_that_is_overwritten_is_judged_anew(detector, folder, tmp_path, quick):
    path = folder / "same.png"
    path.write_bytes(encoded(0))
    first = Watched(detector, folder, tmp_path / "out", 1).images[0]

    def overwrite():
        path.write_bytes(encoded(1, size=(50, 40)))

    second = Watched(detector, folder, tmp_path / "out", 1, overwrite, linger=0.2)
    assert len(second.images) == 1
    assert second.images[0].result.score != first.result.score
    assert [float(row["score"]) for row in rows(tmp_path / "out")] == [
        first.result.score,
        second.images[0].result.score,
    ]
    regions = rows(tmp_path / "out", REGIONS)
    assert len(regions) == len(first.result.regions) + len(second.images[0].result.regions)


def test_a_folder_that_vanishes_is_waited_for(detector, folder, tmp_path, quick, caplog):
    def unmount():
        time.sleep(0.1)
        folder.rename(tmp_path / "away")
        time.sleep(0.3)
        (tmp_path / "away").rename(folder)
        (folder / "a.png").write_bytes(encoded())

    with caplog.at_level("INFO", logger="patchcore"):
        watched = Watched(detector, folder, tmp_path / "out", 1, unmount)
    assert watched.names == ["a.png"]
    told = [record.getMessage() for record in caplog.records if "the watched folder" in record.getMessage()]
    assert [text.startswith("cannot read the watched folder") for text in told] == [True, False]


# The journal


def image(name="a.png", state=(10, 20), regions=2, score=1.5):
    found = tuple(Region(box=(1, 2, 3, 4 + number), area=2.0, peak=9.5, share=0.25) for number in range(regions))
    result = Result(score=score, map=None, member_scores=(score,), p_value=0.5, verdict="accept", regions=found)
    return Inspected(path=Path(name), result=result, seconds=0.5, state=state)


def names(folder):
    return [row["path"] for row in rows(folder)], [row["path"] for row in rows(folder, REGIONS)]


NAMES = ["a.png", "=b.png", 'quote"d,.png', "new\r\nline\n.png", os.fsdecode(b"\xff.png")]


@pytest.mark.parametrize("name", NAMES)
def test_the_journal_knows_what_it_holds(tmp_path, name):
    with PredictionFolder(tmp_path / "out", journal=BASIS) as tables:
        assert not tables.holds(Path(name), (10, 20))
        tables.add(image(name))
        assert tables.holds(Path(name), (10, 20))
    with PredictionFolder(tmp_path / "out", journal=BASIS) as tables:
        assert tables.holds(Path(name), (10, 20))
        assert not tables.holds(Path(name), (11, 20))
        assert not tables.holds(Path(name), (10, 21))
        assert not tables.holds(Path("other.png"), (10, 20))


def test_wherever_a_process_is_killed_the_next_goes_on(tmp_path):
    """Cut both tables at every byte that a kill can leave, in the order in which they are written."""
    out = tmp_path / "out"
    with PredictionFolder(out, journal=BASIS) as tables:
        tables.add(image("first.png"))
        kept = {name: (out / name).stat().st_size for name in (PREDICTIONS, REGIONS)}
        tables.add(image(NAMES[3]))
    whole = {name: (out / name).read_bytes() for name in (PREDICTIONS, REGIONS)}
    cuts = [(kept[PREDICTIONS], end) for end in range(kept[REGIONS], len(whole[REGIONS]) + 1)]
    cuts += [(end, len(whole[REGIONS])) for end in range(kept[PREDICTIONS], len(whole[PREDICTIONS]) + 1)]
    for predictions, regions in cuts:
        (out / PREDICTIONS).write_bytes(whole[PREDICTIONS][:predictions])
        (out / REGIONS).write_bytes(whole[REGIONS][:regions])
        with PredictionFolder(out, journal=BASIS) as tables:
            done = tables.holds(Path(NAMES[3]), (10, 20))
            assert done == (predictions == len(whole[PREDICTIONS]))
            if not done:
                assert names(out) == (["first.png"], ["first.png"] * 2)
                tables.add(image(NAMES[3]))
        assert {name: (out / name).read_bytes() for name in whole} == whole


def test_a_process_that_is_killed_while_it_begins_is_no_obstacle(tmp_path):
    out = tmp_path / "out"
    for left in ({}, {PREDICTIONS: b""}, {PREDICTIONS: b"path,sco"}):
        out.mkdir(exist_ok=True)
        for name, content in left.items():
            (out / name).write_bytes(content)
        with PredictionFolder(out, journal=BASIS) as tables:
            tables.add(image())
        assert names(out) == (["a.png"], ["a.png"] * 2)
        for name in (PREDICTIONS, REGIONS):
            (out / name).unlink()


def test_regions_of_an_older_state_stay(tmp_path):
    with PredictionFolder(tmp_path, journal=BASIS) as tables:
        tables.add(image(state=(10, 20)))
        tables.add(image(state=(10, 21), regions=1))
    content = (tmp_path / PREDICTIONS).read_bytes()
    (tmp_path / PREDICTIONS).write_bytes(content[: content.rindex(b"a.png")])
    with PredictionFolder(tmp_path, journal=BASIS):
        assert [row["modified"] for row in rows(tmp_path, REGIONS)] == ["20", "20"]


def test_a_journal_does_not_go_on_with_other_tables(tmp_path):
    with PredictionFolder(tmp_path / "out") as tables:
        tables.add(image())
    before = (tmp_path / "out" / PREDICTIONS).read_bytes()
    with pytest.raises(PatchCoreError, match="not what --watch wrote"):
        PredictionFolder(tmp_path / "out", journal=BASIS)
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == before


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    with PredictionFolder(tmp_path / "out", journal=BASIS) as tables:
        with pytest.raises(PatchCoreError, match="another process writes its predictions there"):
            PredictionFolder(tmp_path / "out", journal=BASIS)
        tables.add(image())
    with PredictionFolder(tmp_path / "out", journal=BASIS):
        assert names(tmp_path / "out")[0] == ["a.png"]


def test_a_journal_goes_on_with_the_same_model_only(tmp_path):
    with PredictionFolder(tmp_path / "out", journal=BASIS) as tables:
        tables.add(image())
    with pytest.raises(PatchCoreError, match="was begun with another model, --false_rejects or --threshold"):
        PredictionFolder(tmp_path / "out", journal={"model": "two"})


# As a process

WATCH = """
import sys
from patchcore.inspection import watch
watch.POLL_SECONDS, watch.BROKEN_AFTER = 0.05, float(sys.argv.pop(1))
import torch
torch.set_num_threads(1)
from patchcore.cli.scripts import predict
predict()
"""
CAMERA = """
import io, json, random, sys, time
from pathlib import Path
import numpy as np
from PIL import Image

folder, count, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
chance = random.Random(0)
for number in range(count):
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (30 + number % 7, 40, 3), dtype=np.uint8)
    kind, suffix = chance.choice([("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp"), ("TIFF", "tif")])
    Image.fromarray(pixels).save(file, kind)
    content = file.getvalue()
    target = folder / chance.choice(["", "left", "right"]) / f"{number:03d}.{suffix}"
    target.parent.mkdir(exist_ok=True)
    way = ["whole", "pieces", "pieces", "broken", "renamed", "hidden"][number % 6]
    if way in ("renamed", "hidden"):
        aside = target.with_name("." + target.name if way == "hidden" else target.name + ".part")
        aside.write_bytes(content)
        aside.rename(target)
    else:
        left = content if way != "broken" else content[: len(content) // 2]
        with target.open("wb") as file:
            while left:
                size = len(left) if way == "whole" else chance.randint(1, len(left))
                file.write(left[:size])
                file.flush()
                left = left[size:]
                time.sleep(chance.random() * seconds / count if left else 0)
    print(json.dumps([str(target), way]), flush=True)
    time.sleep(chance.random() * seconds / count)
"""


def start_watching(model, folder, out, *options, broken_after=1.0):
    command = [sys.executable, "-c", WATCH, str(broken_after), model, "--watch", folder, "--output", out, *options]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def judged(out):
    return (out / PREDICTIONS).read_bytes().count(b"\r\n") - 1 if (out / PREDICTIONS).exists() else 0


def film(model, folder, out, count, seconds, kills, broken_after):
    """Let a process write images, and kill the one that watches them at random times; returns way by path."""
    chance = random.Random(1)
    camera = subprocess.Popen(
        [sys.executable, "-c", CAMERA, folder, str(count), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(kills):
        watcher = start_watching(model, folder, out, "--save_overlays", broken_after=broken_after)
        begun = judged(out)
        wait_until(lambda begun=begun: judged(out) > begun)
        time.sleep(chance.random() * 0.3)
        watcher.kill()
        watcher.communicate()
    watcher = start_watching(model, folder, out, "--save_overlays", broken_after=broken_after)
    ways = dict(json.loads(line) for line in camera.communicate()[0].splitlines())
    assert len(ways) == count
    wait_until(lambda: judged(out) >= count)
    time.sleep(2 * broken_after)
    watcher.send_signal(signal.SIGTERM)
    _, said = watcher.communicate()
    assert watcher.returncode == (1 if "broken" in said else 0), said
    return ways


@pytest.mark.slow
def test_a_camera_has_every_image_judged_once_whoever_is_killed(model, folder, tmp_path):
    out = tmp_path / "out"
    ways = film(model, folder, out, count=24, seconds=4.0, kills=2, broken_after=1.0)
    assert_each_once(out, ways)


def assert_each_once(out, ways):
    found = rows(out)
    assert sorted(row["path"] for row in found) == sorted(ways)
    assert {row["path"] for row in found if row["error"]} == {path for path, way in ways.items() if way == "broken"}
    whole = {row["path"] for row in found if not row["error"]}
    regions = rows(out, REGIONS)
    assert {row["path"] for row in regions} <= whole
    assert len({(row["path"], row["region"]) for row in regions}) == len(regions)
    assert len([path for path in (out / OVERLAYS).rglob("*") if path.is_file()]) == len(whole)
    assert {path.name for path in out.iterdir()} == {PREDICTIONS, REGIONS, OVERLAYS, "watch.json"}


def test_an_interruption_ends_with_a_summary(model, folder, tmp_path):
    (folder / "a.png").write_bytes(encoded())
    given = tmp_path / "given.png"
    given.write_bytes(encoded(1))
    out = tmp_path / "out"
    watcher = start_watching(model, folder, out, given, "--json", "--fail_on_reject")
    wait_until(lambda: judged(out) == 2)
    watcher.send_signal(signal.SIGINT)
    printed, said = watcher.communicate(timeout=20)
    assert watcher.returncode == 3
    assert [json.loads(line)["path"] for line in printed.splitlines()] == [str(given), str(folder / "a.png")]
    assert said.splitlines()[-1] == "2 images: 2 rejected"
    again = start_watching(model, folder, out, given)
    wait_until(lambda: "watching" in again.stderr.readline())
    time.sleep(0.5)
    again.send_signal(signal.SIGINT)
    printed, said = again.communicate(timeout=20)
    assert (again.returncode, printed, said.splitlines()[-1]) == (0, "", "0 images")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--watch", "."), "--watch needs a folder for the predictions"),
        (("--watch", "nowhere", "--output", "out"), "--watch nowhere: no such folder"),
        (("--watch", ".", "--output", "out"), "--output out must not lie in the watched folder"),
    ],
)
def test_what_cannot_be_watched_is_refused(model, shell, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    ended = shell(predict, model, *options)
    assert ended.code == 2
    assert message in ended.err
    assert list(tmp_path.iterdir()) == []
