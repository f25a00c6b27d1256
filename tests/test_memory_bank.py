import builtins

import numpy as np
import pytest
import torch

from golden import GOLDEN, needs_golden
from patchcore import memory_bank
from patchcore.memory_bank import FaissSearch, MemoryBank, TorchSearch, read_flat_index, write_flat_index
from patchcore.scoring import patch_scores
from patchcore.types import PatchCoreError

SEARCHES = {"faiss": lambda bank: FaissSearch(bank, None), "torch": TorchSearch}


@pytest.fixture
def without_faiss(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "faiss":
            raise ImportError("no faiss")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


@needs_golden
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("k", [1, 3])
def test_golden_patch_scores(search, k):
    case = np.load(GOLDEN / f"scoring_k{k}.npz")
    distances = SEARCHES[search](torch.from_numpy(case["bank"]))(torch.from_numpy(case["queries"]), k)
    np.testing.assert_allclose(patch_scores(distances).numpy(), case["patch_scores"], rtol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_search_equals_sorted_distances(search, k):
    torch.manual_seed(0)
    # Far from the origin, as patch features are: the product form alone would lose the digits of small distances.
    bank, queries = torch.randn(300, 40) + 20, torch.randn(50, 40) + 20
    expected = torch.cdist(queries.double(), bank.double()).square().sort(dim=1).values[:, :k]
    result = SEARCHES[search](bank)(queries, k)
    assert result.shape == (50, k)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=0)


def test_neighbours_beyond_the_bank_are_refused():
    with pytest.raises(PatchCoreError, match=r"num_nn 4 asks for more neighbours .* \(3\)"):
        MemoryBank(torch.randn(3, 2)).distances(torch.randn(1, 2), 4)


def test_bank_searches_by_torch_where_faiss_is_missing(without_faiss, caplog):
    bank = MemoryBank(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert bank.search.name == "torch"
    assert "FAISS is not installed" in caplog.text
    assert bank.distances(torch.tensor([[3.0, 0.0]]), 2).tolist() == [[9.0, 16.0]]


def test_faiss_on_gpu_without_cuda_is_told(caplog):
    bank = MemoryBank(torch.zeros(2, 2), on_gpu=True)
    assert bank.search.name == "faiss-cpu"
    assert "not on a CUDA device" in caplog.text


def test_workers_set_the_threads_of_faiss():
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    try:
        MemoryBank(torch.zeros(2, 2), num_workers=1)
        assert faiss.omp_get_max_threads() == 1
    finally:
        faiss.omp_set_num_threads(before)


def test_index_file_is_that_of_faiss(tmp_path):
    faiss = pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    index = faiss.IndexFlatL2(7)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "theirs"))
    write_flat_index(tmp_path / "ours", vectors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert (read_flat_index(tmp_path / "theirs").numpy() == vectors).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-4], "damaged index"),
        (lambda data: data + b"x", "damaged index"),
        (lambda data: b"IxFI" + data[4:], "expected a FAISS flat L2 index"),
        (lambda data: data[:10], "expected a FAISS flat L2 index"),
        (lambda data: b"", "expected a FAISS flat L2 index"),
    ],
)
def test_damaged_index_is_named(tmp_path, damage, message):
    path = tmp_path / "index.faiss"
    write_flat_index(path, np.zeros((3, 2), dtype=np.float32))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PatchCoreError, match=message) as error:
        read_flat_index(path)
    assert str(path) in str(error.value)


def test_missing_index_is_named(tmp_path):
    with pytest.raises(PatchCoreError, match=r"gone.faiss: cannot read"):
        read_flat_index(tmp_path / "gone.faiss")


@pytest.mark.parametrize(("rows", "devices"), [(300, 2), (300, 3), (2, 3)])
def test_a_bank_in_shards_gives_the_distances_of_the_whole(rows, devices):
    torch.manual_seed(0)
    bank, queries = torch.randn(rows, 8), torch.randn(20, 8)
    sharded = memory_bank.spread(bank, [torch.device("cpu")] * devices, TorchSearch)
    assert sharded.name == f"{min(rows, devices)} x torch"
    torch.testing.assert_close(sharded(queries, 2), TorchSearch(bank)(queries, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("reaches_gpu", [True, False])
def test_gpu_search_equals_cpu_search(reaches_gpu, monkeypatch):
    if reaches_gpu and not memory_bank.faiss_reaches_gpu():
        pytest.skip("FAISS has no GPU support here")
    monkeypatch.setattr(memory_bank, "faiss_reaches_gpu", lambda: reaches_gpu)
    torch.manual_seed(0)
    bank, queries = torch.randn(3000, 256), torch.randn(500, 256)
    expected = TorchSearch(bank)(queries, 3)
    result = MemoryBank(bank.cuda(), on_gpu=True).distances(queries.cuda(), 3)
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=0)
