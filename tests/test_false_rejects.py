"""The benchmark of false rejects computes what it says, and prints its tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.drawn_patches import duplicates_table, frames
from benchmarks.drawn_scores import by_mean, by_one, by_ranks, realised
from benchmarks.false_rejects import main
from benchmarks.left_out import PatchBank, Thinning, expected_rate, folds, rejected, retrained
from benchmarks.real_sets import Embedded, seeds_table, splits_table
from patchcore.methods.patchcore.detector import PatchCore
from patchcore.system.timing import StageTimer

WHOLE = Thinning(sampler="identity")
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("count", "rate", "expected"), [(10, 0.05, 1 / 11), (54, 0.05, 2 / 55), (19, 0.05, 1 / 20), (200, 0.05, 10 / 201)]
)
def test_expected_rate_is_of_whole_ranks(count, rate, expected):
    assert expected_rate(count, rate) == expected


def test_scores_of_images_of_one_patch_by_hand():
    on_a_line = torch.tensor([[[0.0]], [[1.0]], [[5.0]]])
    bank = PatchBank(on_a_line, WHOLE, seed=0)
    assert bank.scores(torch.tensor([[[3.0]]])).tolist() == [4.0]
    assert bank.in_sample().tolist() == [0.0, 0.0, 0.0]
    assert bank.left_out().tolist() == [1.0, 1.0, 16.0]
    assert retrained(on_a_line, WHOLE, seed=0).tolist() == [1.0, 1.0, 16.0]
    assert folds(on_a_line, WHOLE, seed=0, count=3).tolist() == [1.0, 1.0, 16.0]


def test_left_out_scores_are_those_of_the_detector():
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector = PatchCore(
        backbones=("efficientnet_lite0",), layers=(("blocks.2",),), weights="random", imagesize=64, resize=64,
        fraction=0.5, device="cpu",
    )  # fmt: skip
    detector.fit([image.permute(1, 2, 0).numpy() for image in images], seed=3)
    patches = detector.members[0].embed(images, StageTimer(CPU)).flatten(1, 2)
    found = PatchBank(patches, Thinning(fraction=0.5), seed=3).left_out()
    np.testing.assert_allclose(found, detector.calibration.scores[0], rtol=1e-6)


def test_an_image_is_rejected_above_the_rank_of_the_rate():
    good = np.arange(1.0, 20.0)  # 19 images: at 10 % two of 20 ranks are rejected
    assert rejected(good, np.array([18.0, 18.5, 19.5]), 0.1).tolist() == [False, True, True]


def test_realised_rates_average_to_the_expected():
    found = realised("normal", 19, 0.1, 2000)
    assert abs(found.mean() - 0.1) < 4 * found.std() / 2000**0.5


def test_ensembles_are_judged_in_three_ways():
    good = np.stack([np.arange(1.0, 20.0), np.full(19, 100.0)])
    only_the_second = np.array([[1.0], [300.0]])
    assert not by_one(good, only_the_second, 0.1)[0]
    assert by_mean(good, only_the_second, 0.1)[0]
    assert by_ranks(good, np.array([[30.0], [101.0]]), 0.1)[0]


def test_frames_of_a_part_stand_in_a_row():
    parts = torch.tensor([[[0.0]], [[8.0]]])
    found = frames(parts, 3, 0.01, torch.Generator().manual_seed(0)).flatten()
    assert found.round().tolist() == [0, 0, 0, 8, 8, 8]
    assert len(set(found.tolist())) == 6


def test_near_duplicates_make_the_threshold_too_low():
    rows = {row[0]: row[2] for row in duplicates_table(40, 3).rows[::-1]}  # the least noise stays
    alone, bursts = (float(rows[name].split()[0]) for name in ("1 of each of 40 parts", "5 of each of 8 parts"))
    assert bursts > alone + 4


def test_tables_of_photos():
    generator = torch.Generator().manual_seed(0)
    train, good, faulty = (torch.randn(count, 9, 4, generator=generator) for count in (12, 6, 5))
    train[7] += 20  # a part that is unlike the others
    images = Embedded(category="nuts", train=train, good=good, faulty=faulty + 9, names=[f"{i}.png" for i in range(12)])
    table = seeds_table(images, Thinning(fraction=0.5))
    assert [row[0] for row in table.rows] == ["0", "1", "2", "3", "4"]
    assert {row[4].split(",")[0] for row in table.rows} == {"7.png"}
    assert {row[3] for row in table.rows} == {"0 of 6 (0 to 46 %)"}
    rows = splits_table(images, Thinning(fraction=0.5), [10], 2).rows
    assert [row[1:3] for row in rows] == [
        (kind, rate)
        for kind in ("left out of the finished bank", "bank made anew without it", "5 folds")
        for rate in ("5 %", "10 %")
    ]


def test_quick_run_prints_all_tables(shell):
    ended = shell(main, "--quick")
    assert ended.code == 0, ended.err
    for title in ("One detector", "Ensembles of three", "PatchCore on drawn patches", "30 training photos"):
        assert f"### {title}" in ended.out
