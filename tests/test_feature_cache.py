"""The cache of feature maps: exact, bounded, shared without locks, and never in the way."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest
import torch

from commands import (
    LITE0,
    load_and_evaluate_fastflow,
    load_and_evaluate_patchcore,
    patchcore_args,
    run_fastflow,
    run_patchcore,
    score_lines,
)
from patchcore.backbones.build import load_backbone
from patchcore.features import encoder
from patchcore.features.cache import FeatureCache
from patchcore.features.encoder import Encoder
from patchcore.features.extractor import FeatureExtractor
from patchcore.results.tables import read_results
from patchcore.system.timing import StageTimer

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
MIB = 2**20
LAYERS = ("blocks.2", "blocks.4")
NAME = "ab" + "0" * 38
MAP = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def map_of(number: float) -> np.ndarray:
    """A map of 1 MiB."""
    return np.full((4, 256, 256), number, np.float32)


def name_of(number: int) -> str:
    return f"{number:02x}" + "0" * 38


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def age(folder, number, seconds):
    """Make it so long ago that a map was used."""
    path = folder / name_of(number)[:2] / f"{name_of(number)[2:]}.map"
    moment = path.stat().st_mtime - seconds
    os.utime(path, (moment, moment))
    return path


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_map_comes_back_as_it_was(tmp_path, channels_last):
    cache = FeatureCache(tmp_path, MIB)
    assert cache.read(NAME) is None
    cache.write(NAME, MAP, channels_last)
    stored, order = FeatureCache(tmp_path, MIB).read(NAME)
    np.testing.assert_array_equal(stored, MAP)
    assert order is channels_last
    assert len(files_of(tmp_path)) == 1


DAMAGES = {
    "empty": lambda content: b"",
    "only the header": lambda content: content[:28],
    "truncated": lambda content: content[:-4],
    "longer": lambda content: content + b"\0\0\0\0",
    "a flipped bit": lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    "something else": lambda content: b"\x89PNG" + content[4:],
    "another shape": lambda content: content[:12] + b"\xff" + content[13:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_map_is_a_miss_and_is_replaced(tmp_path, name):
    cache = FeatureCache(tmp_path, MIB)
    cache.write(NAME, MAP, False)
    [path] = files_of(tmp_path)
    path.write_bytes(DAMAGES[name](path.read_bytes()))
    assert cache.read(NAME) is None
    cache.write(NAME, MAP, False)
    assert cache.read(NAME) is not None
    assert files_of(tmp_path) == [path]


def test_what_was_used_longest_ago_goes_first(tmp_path):
    first = FeatureCache(tmp_path, 20 * MIB)
    for number in range(8):
        first.write(name_of(number), map_of(number), False)
    for number in range(8):
        age(tmp_path, number, 1000 - number)
    foreign = tmp_path / "00" / "notes.txt"
    foreign.write_text("not a map")
    left_over = tmp_path / "00" / f".{'0' * 32}.tmp"  # of a run that was killed
    left_over.write_bytes(b"x")
    os.utime(left_over, (0, 0))

    second = FeatureCache(tmp_path, int(8.5 * MIB))
    assert second.read(name_of(0)) is not None  # the oldest, now the newest
    for number in range(8, 11):
        second.write(name_of(number), map_of(number), False)
    there = {number for number in range(11) if second.read(name_of(number)) is not None}
    assert {0, 8, 9, 10} <= there
    assert there == {0, *range(11 - len(there) + 1, 11)}  # and of the others the newest
    assert foreign.exists()
    assert not left_over.exists()
    assert sum(path.stat().st_size for path in files_of(tmp_path)) <= 8.5 * MIB


def test_a_run_never_throws_out_what_it_uses_itself(tmp_path, caplog):
    """Else a run over slightly more than the limit would find nothing the next time either."""
    caplog.set_level("INFO", "patchcore")
    cache = FeatureCache(tmp_path, 4 * MIB)
    for number in range(9):
        cache.write(name_of(number), map_of(number), False)
    assert [number for number in range(9) if cache.read(name_of(number)) is not None] == [0, 1, 2]
    assert len([record for record in caplog.records if "is full of maps of this run" in record.message]) == 1


def test_files_that_vanish_meanwhile_do_no_harm(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path, 3 * MIB)
    monkeypatch.setattr(cache, "_files", lambda: iter([(0.0, 3 * MIB, tmp_path / "00" / "gone.map")]))
    cache.write(NAME, MAP, False)
    assert cache.read(NAME) is not None


def test_a_folder_that_cannot_be_made_is_warned_of_once(tmp_path, caplog):
    caplog.set_level("WARNING", "patchcore")
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file", MIB)
    for number in range(3):
        cache.write(name_of(number), MAP, False)
        assert cache.read(name_of(number)) is None
    [record] = caplog.records
    assert "cannot write" in record.message
    assert "goes on without keeping maps" in record.message


def test_a_full_disk_is_warned_of_once_and_what_is_there_is_still_read(tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING", "patchcore")
    cache = FeatureCache(tmp_path, MIB)
    cache.write(name_of(0), MAP, False)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr("os.utime", full)
    for number in (1, 2):
        cache.write(name_of(number), MAP, False)
    assert cache.read(name_of(0)) is not None
    assert [record.message.count("No space left") for record in caplog.records] == [1]
    assert len(files_of(tmp_path)) == 1


def test_runs_at_once_read_whole_maps_or_none(tmp_path):
    """Several write the same maps and throw out each other's, in a folder that is too small for them."""
    failures = []

    def work(seed):
        numbers = np.random.default_rng(seed).integers(0, 6, 120)
        for start in range(0, 120, 20):
            cache = FeatureCache(tmp_path, 4 * MIB)
            for number in numbers[start : start + 20]:
                found = cache.read(name_of(number))
                if found is None:
                    cache.write(name_of(number), map_of(number), False)
                elif not (found[0] == number).all():
                    failures.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not [path for path in files_of(tmp_path) if path.suffix != ".map"]


def extractor(name="efficientnet_lite0", layers=LAYERS):
    return FeatureExtractor(load_backbone(name, weights="random"), layers)


def images(count, size=64):
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def features(folder, network, batch, **settings):
    """Maps and counts of a cache that was made anew, as a new run would."""
    cache = FeatureCache(folder, 100 * MIB)
    maps = encoder_of(network, batch, cache)(batch, StageTimer(CPU), **settings)
    return maps, cache.take_counts()


def encoder_of(network, batch, cache=None):
    return Encoder(network, tuple(batch.shape[-2:]), cache)


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [("efficientnet_lite0", LAYERS), ("timm/deit_tiny_distilled_patch16_224", ("blocks.3",))],
)
def test_maps_from_the_cache_are_those_of_the_backbone_in_the_same_order_of_memory(tmp_path, backbone, layers):
    network, batch = extractor(backbone, layers), images(3)
    plain = encoder_of(network, batch)(batch, StageTimer(CPU))
    cold, counts = features(tmp_path, network, batch)
    assert counts == (0, 3)
    warm, counts = features(tmp_path, network, batch)
    assert counts == (3, 0)
    for maps in (cold, warm):
        for x, expected in zip(maps, plain, strict=True):
            assert torch.equal(x, expected)
            assert x.stride() == expected.stride()


def test_what_is_known_takes_no_backbone_pass(tmp_path):
    network, batch = extractor(), images(2)
    features(tmp_path, network, batch)
    cache, timer = FeatureCache(tmp_path, 100 * MIB), StageTimer(CPU)
    encoder_of(network, batch, cache)(batch, timer)
    assert set(timer.seconds()) == {"cache"}


# What has to be computed anew, each against two images that are known.
OTHERS = {
    "weights": lambda: (extractor("efficientnet_lite0.seed-1"), images(2)),
    "layer": lambda: (extractor(layers=("blocks.2", "blocks.3")), images(2)),
    "pixel": lambda: (extractor(), images(2) ^ 1),
    "image size": lambda: (extractor(), images(2, 72)),
    "batch size": lambda: (extractor(), images(2)[:1]),  # some devices round differently
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_a_miss(tmp_path, name):
    features(tmp_path, extractor(), images(2))
    network, batch = OTHERS[name]()
    maps, counts = features(tmp_path, network, batch)
    assert counts == (0, len(batch))
    for x, expected in zip(maps, encoder_of(network, batch)(batch, StageTimer(CPU)), strict=True):
        assert torch.equal(x, expected)


def test_one_weight_that_differs_is_noticed(tmp_path):
    """A file that was exchanged in --weights_dir goes by the same name."""
    network = extractor()
    features(tmp_path, network, images(2))
    weight = next(iter(network.parameters()))
    weight[0, 0, 0, 0] += 1e-6
    assert features(tmp_path, network, images(2))[1] == (0, 2)


def test_other_numbers_of_threads_are_told_apart(tmp_path):
    network = extractor()
    features(tmp_path, network, images(2))
    torch.set_num_threads(2)
    try:
        assert features(tmp_path, network, images(2))[1] == (0, 2)
    finally:
        torch.set_num_threads(1)


# What may change the digits of a map, in the libraries, the machine and our own code.
CONDITIONS = {
    "processor": lambda patch: patch.setattr(encoder, "processor", lambda: "another"),
    "version": lambda patch: patch.setattr(encoder, "version", lambda name: "another"),
    "precision": lambda patch: patch.setattr(torch, "get_float32_matmul_precision", lambda: "medium"),
    "onednn": lambda patch: patch.setattr(torch.backends.mkldnn, "enabled", False),
    "kernels": lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
    "code": lambda patch: patch.setattr(encoder, "_SOURCES", ("features/extractor.py",)),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_other_conditions_are_told_apart(tmp_path, monkeypatch, name):
    features(tmp_path, extractor(), images(2))
    assert features(tmp_path, extractor(), images(2))[1] == (2, 0)
    CONDITIONS[name](monkeypatch)
    assert features(tmp_path, extractor(), images(2))[1] == (0, 2)


def test_a_subset_of_the_layers_is_known_and_a_batch_with_a_gap_is_filled(tmp_path):
    network, batch = extractor(), images(3)
    features(tmp_path, network, batch)
    assert features(tmp_path, extractor(layers=LAYERS[1:]), batch)[1] == (3, 0)
    before = {path: path.stat().st_mtime_ns for path in files_of(tmp_path)}
    gap = next(iter(before))
    gap.unlink()
    assert features(tmp_path, network, batch)[1] == (0, 3)
    assert set(files_of(tmp_path)) == set(before)
    assert features(tmp_path, network, batch)[1] == (3, 0)


def test_images_that_will_not_come_again_are_not_kept(tmp_path):
    _, counts = features(tmp_path, extractor(), images(2), cached=False)
    assert counts == (0, 0)
    assert not files_of(tmp_path)


ENSEMBLE = (
    *("-b", "efficientnet_lite0", "-b", "efficientnet_lite0.seed-1", "--weights", "random"),
    *("-le", "0.blocks.2", "-le", "0.blocks.4", "-le", "1.blocks.2"),
)
SMALL = ("--resize", "72", "--imagesize", "64", "-d", "metal_plate", "--train_val_split", "0.7")
FLOW = ("--backbone", "efficientnet_lite0", "--weights", "random", "--epochs", 2, "--steps", 2)


@pytest.fixture
def run(shell, parts, tmp_path):
    """Run a method on the small synthetic set; returns scores, results, and what went to standard error."""

    def start(method, group, *options, stage=None):
        options = ("--save_anomaly_scores", "--log_group", group, *options)
        if method == "patchcore":
            args = patchcore_args(tmp_path, parts, run=options, patch_core=stage or ENSEMBLE, dataset=SMALL)
            ended = shell(run_patchcore, *args)
        else:
            args = [*options, tmp_path, "fastflow", *(stage or FLOW), "dataset", *SMALL, "mpdd", parts]
            ended = shell(run_fastflow, *args)
        assert ended.code == 0, ended.err
        folder = tmp_path / "project" / group
        row = read_results(folder / "results.csv")["mpdd_metal_plate"]
        return (folder / "anomaly_scores" / "mpdd_metal_plate.csv").read_bytes(), row, ended.err

    return start


@pytest.mark.parametrize("method", ["patchcore", "fastflow"])
def test_scores_are_the_same_to_the_last_digit(run, tmp_path, method):
    option = ("--feature_cache", tmp_path / "cache")
    without, row, _ = run(method, "without")
    assert "cached_share" not in row
    cold, row, said = run(method, "cold", *option)
    assert row["cached_share"] == 0
    assert "metal_plate: feature maps of 0 of" in said
    warm, row, said = run(method, "warm", *option)
    assert row["cached_share"] == 1
    assert "backbone_ms_per_image" not in row
    passes = 6 + 11  # training, held-out and test images
    expected = 2 * passes if method == "patchcore" else passes
    assert f"metal_plate: feature maps of {expected} of {expected} backbone inputs from the cache" in said
    assert without == cold == warm


def test_both_methods_and_other_settings_share_the_maps(run, tmp_path):
    option = ("--feature_cache", tmp_path / "cache")
    lite0 = (*LITE0, "--weights", "random")
    run("patchcore", "first", *option, stage=lite0)
    assert run("patchcore", "second", *option, stage=(*lite0, "--patchsize", 5))[1]["cached_share"] == 1
    flow = (*FLOW, "-le", "blocks.2", "-le", "blocks.4")
    assert run("fastflow", "third", *option, stage=flow)[1]["cached_share"] == 1


def test_brightness_jitter_does_not_fill_the_cache(run, tmp_path):
    option = ("--feature_cache", tmp_path / "cache")
    run("fastflow", "fixed", *option)
    fixed = len(files_of(tmp_path / "cache"))
    jitter = (*FLOW, "--brightness_jitter", "0.3", "--epochs", 5)
    without = run("fastflow", "without", stage=jitter)[0]
    cold = run("fastflow", "cold", *option, stage=jitter)[0]
    # The training images as they are were met in batches of another size; no brightened ones were added.
    assert len(files_of(tmp_path / "cache")) <= 2 * fixed
    warm, row, _ = run("fastflow", "warm", *option, stage=jitter)
    assert row["cached_share"] == 1
    assert row["fit_backbone_seconds"] > 0
    assert without == cold == warm


def test_the_limit_acts(run, tmp_path):
    option = ("--feature_cache", tmp_path / "cache", "--feature_cache_gib")
    run("patchcore", "all", *option, "1")
    everything = sum(path.stat().st_size for path in files_of(tmp_path / "cache"))
    limit = everything / 2 / 2**30
    run("patchcore", "half", "--feature_cache", tmp_path / "small", "--feature_cache_gib", limit)
    assert 0 < sum(path.stat().st_size for path in files_of(tmp_path / "small")) <= everything / 2
    share = run("patchcore", "again", "--feature_cache", tmp_path / "small", "--feature_cache_gib", limit)[1]
    assert 0 < share["cached_share"] < 1


def test_a_limit_without_a_cache_is_refused(shell, parts, tmp_path):
    ended = shell(run_patchcore, *patchcore_args(tmp_path, parts, run=("--feature_cache_gib", 3)))
    assert ended.code == 2
    assert "--feature_cache_gib has no effect without --feature_cache" in ended.err


def test_a_run_may_be_resumed_with_a_cache(run, tmp_path):
    run("patchcore", "group")
    _, _, said = run("patchcore", "group", "--resume", "--feature_cache", tmp_path / "cache", "--feature_cache_gib", 1)
    assert "finished before, skipped" in said


def test_stored_models_take_their_maps_from_the_cache(run, shell, parts, tmp_path):
    option = ("--feature_cache", tmp_path / "cache")
    run("patchcore", "bank", *option, "--save_patchcore_model")
    run("fastflow", "flow", *option, "--save_model")
    stages = {
        "bank": (load_and_evaluate_patchcore, "patch_core_loader"),
        "flow": (load_and_evaluate_fastflow, "fastflow_loader"),
    }
    for group, (command, stage) in stages.items():
        loader = (stage, "-p", tmp_path / "project" / group / "models")
        options = ("--save_anomaly_scores", "--log_group", f"{group} again", *option)
        ended = shell(command, *options, tmp_path, *loader, "dataset", "-d", "metal_plate", "mpdd", parts)
        assert ended.code == 0, ended.err
        again = tmp_path / "project" / f"{group} again"
        assert read_results(again / "results.csv")["Mean"]["cached_share"] == 1
        scores = "anomaly_scores/mpdd_metal_plate.csv"
        first = tmp_path / "project" / group
        assert score_lines(again / scores) == score_lines(first / scores)
