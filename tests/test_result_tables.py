"""The tables and arrays of a run: their bytes, what is read back, and what is said of damaged ones."""

import math
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from patchcore.calibration import Verdict
from patchcore.metrics import RankedPairs
from patchcore.results.columns import METRICS, stage_ms_per_image, stage_of
from patchcore.results.scores import read_pixel_pairs, read_scores, write_pixel_pairs, write_scores
from patchcore.results.tables import (
    format_results,
    read_csv,
    read_defect_types,
    read_results,
    write_csv,
    write_defect_types,
    write_results,
)
from patchcore.types import PatchCoreError, Predictions, Sample

LABELS = np.array([False, True, True])


def test_results_by_the_byte(tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, {"mpdd_a": {"instance_auroc": 0.1 + 0.2, "images": 3}, "mpdd_b": {"images": 4, "s": math.nan}})
    assert path.read_bytes() == (
        b"Row Names,instance_auroc,images,s\r\n"
        b"mpdd_a,0.30000000000000004,3,nan\r\n"
        b"mpdd_b,nan,4,nan\r\n"
        b"Mean,0.30000000000000004,3.5,nan\r\n"
    )


def test_results_that_are_read_are_written_the_same_again(tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, {"mpdd_a": {"instance_auroc": 1 / 3, "train_images": 54, "fit_seconds": 2.0, "x": math.nan}})
    before = path.read_bytes()
    rows = read_results(path)
    rows.pop("Mean")
    write_results(path, rows)
    assert path.read_bytes() == before


def test_defect_types_by_the_byte_and_back(tmp_path):
    path = tmp_path / "defect_types.csv"
    numbers = {"images": 14, "instance_auroc": 1.0, "anomaly_pixel_auroc": 0.1 + 0.2, "defects_caught": math.nan}
    write_defect_types(path, {"mpdd_a": {"major, rust": numbers}})
    assert path.read_bytes() == (
        b"Row Names,defect_type,images,instance_auroc,anomaly_pixel_auroc,defects_caught\r\n"
        b'mpdd_a,"major, rust",14,1.0,0.30000000000000004,nan\r\n'
    )
    ((row, types),) = read_defect_types(path).items()
    assert (row, list(types)) == ("mpdd_a", ["major, rust"])
    assert str(types["major, rust"]) == str(numbers)  # nan among them


@pytest.fixture
def predictions():
    samples = tuple(
        Sample(path=Path(f"/data/plate/test/{defect}/{number}.png"), category="plate", split="test", defect=defect)
        for number, defect in enumerate(("good", "rust", "rust"))
    )
    return Predictions(
        scores=np.array([0.0, 0.25, 1.0]),
        maps=np.zeros((3, 2, 2), np.float32),
        raw_scores=np.array([[1.0, 2.0, 5.0], [3.0, 4.0, 7.0]]),
        labels=LABELS,
        masks=None,
        samples=samples,
        columns={"brightness": np.array([0.5, 1.5, 2.5])},
    )


def test_scores_by_the_byte(predictions, tmp_path):
    write_scores(tmp_path / "a.csv", predictions, predictions.scores, root=Path("/data"), verdict=None)
    header = (
        "path,defect_type,label,raw_score,normalised_score,decision_value,rejected,p_value,raw_score_0,raw_score_1,"
        "brightness\r\n"
    )
    assert (tmp_path / "a.csv").read_bytes().decode() == (
        f"{header}plate/test/good/0.png,good,0,2.0,0.0,,,,1.0,3.0,0.5\r\n"
        "plate/test/rust/1.png,rust,1,3.0,0.25,,,,2.0,4.0,1.5\r\n"
        "plate/test/rust/2.png,rust,1,6.0,1.0,,,,5.0,7.0,2.5\r\n"
    )
    verdict = Verdict(
        values=np.array([0.1, 0.2, 0.3]),
        threshold=0.25,
        rejected=np.array([False, False, True]),
        p_values=np.array([0.5, 0.25, 0.125]),
        rate=0.05,
    )
    write_scores(tmp_path / "b.csv", predictions, predictions.scores, root=Path("/data"), verdict=verdict)
    assert (tmp_path / "b.csv").read_bytes().decode().splitlines()[3] == (
        "plate/test/rust/2.png,rust,1,6.0,1.0,0.3,1,0.125,5.0,7.0,2.5"
    )


@pytest.mark.parametrize("has_verdict", [False, True])
def test_scores_are_read_as_they_were_written(predictions, tmp_path, has_verdict):
    values = np.array([0.1, 0.2, 1 / 3])
    verdict = Verdict(values=values, threshold=0.2, rejected=values > 0.2, p_values=values, rate=0.05)
    normalised = np.array([0, 1 / 7, 1.0])
    path = tmp_path / "scores.csv"
    write_scores(path, predictions, normalised, root=Path("/data"), verdict=verdict if has_verdict else None)
    found = read_scores(path, 3)
    assert found.paths == ("plate/test/good/0.png", "plate/test/rust/1.png", "plate/test/rust/2.png")
    assert found.labels.tolist() == LABELS.tolist()
    assert found.scores.tolist() == normalised.tolist()
    assert found.values.tolist() == (values.tolist() if has_verdict else [2.0, 3.0, 6.0])


def test_text_that_a_spreadsheet_would_evaluate_is_quoted_and_read_back(tmp_path):
    cells = ["=1+1", "+x", "-x", "@x", "\tx", "'=x", "'", "plain", ""]
    write_csv(tmp_path / "t.csv", ["text", "number"], [[cell, -1.5] for cell in cells])
    raw = (tmp_path / "t.csv").read_text()
    assert "'=1+1,-1.5" in raw
    assert "\nplain,-1.5" in raw
    assert [row["text"] for row in read_csv(tmp_path / "t.csv", ["text"])] == cells


def test_file_names_that_are_no_utf_8_are_escaped(tmp_path):
    write_csv(tmp_path / "t.csv", ["path"], [["caf\udce9.png"]])
    assert read_csv(tmp_path / "t.csv", ["path"]) == [{"path": "caf\\udce9.png"}]


DAMAGED_CSV = {
    "no file": (None, "No such file"),
    "no UTF-8": (b"path,x\r\n\xff,1\r\n", "utf-8"),
    "empty": (b"", "no column path, x"),
    "other columns": (b"path,y\r\n", "no column x"),
    "one column twice": (b"path,x,x\r\n", "two columns of one name"),
    "short line": (b"path,x\r\na,1\r\nb\r\n", "line 3 does not have 2 columns"),
    "long line": (b"path,x\r\na,1,2\r\n", "line 2 does not have 2 columns"),
    "open quote": (b'path,x\r\n"a,1\r\n', "unexpected end of data"),
    "huge field": (b"path,x\r\n" + b"a" * 200_000 + b",1\r\n", "field larger than field limit"),
}


@pytest.mark.parametrize("name", DAMAGED_CSV)
def test_a_damaged_table_is_named(tmp_path, name):
    content, said = DAMAGED_CSV[name]
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(PatchCoreError, match=f"{re.escape(str(tmp_path / 't.csv'))}: damaged: .*{said}"):
        read_csv(tmp_path / "t.csv", ["path", "x"])


@pytest.mark.parametrize(
    ("cell", "said"),
    [("half", "'half', expected a number"), ("1.5", "1.5, expected 0 to 1"), ("-inf", "expected 0 to 1"), ("", "''")],
)
def test_a_metric_must_be_a_share(tmp_path, cell, said):
    (tmp_path / "results.csv").write_text(f"Row Names,aupro\nmpdd_a,{cell}\n")
    with pytest.raises(PatchCoreError, match=re.escape(said)):
        read_results(tmp_path / "results.csv")


@pytest.fixture
def pairs(tmp_path):
    """A file of pairs of two defective among three images, and what is in it."""
    rng = np.random.default_rng(0)
    content = RankedPairs(won=rng.random((2, 3)), positives=rng.random(2), negatives=rng.random(3))
    write_pixel_pairs(tmp_path / "pixels.npz", content)
    return tmp_path / "pixels.npz", content


def test_pixel_pairs_are_float32_and_read_as_they_were_written(pairs):
    path, content = pairs
    with np.load(path) as arrays:
        assert list(arrays) == ["won", "positives", "negatives"]
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    found = read_pixel_pairs(path, LABELS)
    for name, array in vars(content).items():
        np.testing.assert_array_equal(getattr(found, name), array.astype(np.float32))
        assert getattr(found, name).dtype == np.float64


def test_pixel_pairs_in_the_order_of_columns_are_the_same(pairs):
    path, content = pairs
    transposed = RankedPairs(
        won=np.asfortranarray(content.won), positives=content.positives, negatives=content.negatives
    )
    write_pixel_pairs(path, transposed)
    np.testing.assert_array_equal(read_pixel_pairs(path, LABELS).won, content.won.astype(np.float32))


def test_no_damage_to_the_pixel_pairs_stops_the_reader(pairs):
    """Whatever byte is hit, the pairs are read as they were or named as damaged."""
    path, _ = pairs
    content = path.read_bytes()
    intact = 0
    for position in range(len(content)):
        flipped = content[position] ^ (0xFF if position % 2 else 1)
        path.write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
        with suppress(PatchCoreError):
            read_pixel_pairs(path, LABELS)
            intact += 1
    assert intact < len(content) / 2


def test_a_small_file_of_many_pairs_is_not_unpacked(tmp_path):
    path = tmp_path / "pixels.npz"
    many = np.zeros(10**8, np.uint8)  # packs into 100 kB
    np.savez_compressed(path, won=many, positives=many[:1], negatives=many[:1])
    with pytest.raises(PatchCoreError, match="won is uint8 of shape"):
        read_pixel_pairs(path, LABELS)


def test_the_closing_table_by_hand():
    rows = {
        "mpdd_a": {**dict.fromkeys(METRICS, 0.5), "fit_seconds": 1.0, "ms_per_image": 10.26},
        "mpdd_bb": {**dict.fromkeys(METRICS, 1.0), "fit_seconds": 3.0},
    }
    assert format_results(rows).splitlines() == [
        "category  image AUROC  pixel AUROC  pixel AUROC defective   AUPRO  training s  ms/image",
        "mpdd_a         0.5000       0.5000                 0.5000  0.5000         1.0      10.3",
        "mpdd_bb        1.0000       1.0000                 1.0000  1.0000         3.0       nan",
        "Mean           0.7500       0.7500                 0.7500  0.7500         2.0      10.3",
    ]
    assert "Mean" not in format_results({"mpdd_a": rows["mpdd_a"]})


def test_a_category_without_test_images_says_so_in_words():
    tested = {**dict.fromkeys(METRICS, 0.5), "fit_seconds": 1.0, "ms_per_image": 10.25, "test_images": 3}
    untested = {**dict.fromkeys(METRICS, math.nan), "fit_seconds": 3.0, "test_images": 0}
    assert format_results({"mpdd_a": tested, "mpdd_b": untested}).splitlines() == [
        "category  image AUROC  pixel AUROC  pixel AUROC defective   AUPRO  training s  ms/image",
        "mpdd_a         0.5000       0.5000                 0.5000  0.5000         1.0      10.2",
        "mpdd_b              -            -                      -       -         3.0         -",
        "Mean           0.5000       0.5000                 0.5000  0.5000         2.0      10.2",
        "mpdd_b: no test images: nothing to measure",
    ]
    lines = format_results({"mpdd_b": untested, "mpdd_c": untested}).splitlines()
    assert lines[3].split() == ["Mean", "-", "-", "-", "-", "3.0"]


def test_the_columns_of_stages_name_their_stage():
    assert stage_of(stage_ms_per_image("search")) == "search"
    assert stage_of("ms_per_image") is None
    assert stage_of("fit_seconds") is None
