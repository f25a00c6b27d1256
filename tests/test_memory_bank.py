import builtins
import threading

import numpy as np
import pytest
import torch

from golden import GOLDEN, needs_golden
from patchcore.methods.patchcore import memory_bank, pruned_search, search
from patchcore.methods.patchcore.index_file import read_flat_index, write_flat_index
from patchcore.methods.patchcore.memory_bank import MemoryBank
from patchcore.methods.patchcore.pruned_search import PrunedSearch
from patchcore.methods.patchcore.search import Apart, FaissSearch, TorchSearch, spread
from patchcore.scoring import patch_scores
from patchcore.types import PatchCoreError

SEARCHES = {"faiss": lambda bank: FaissSearch(bank, None), "torch": TorchSearch}


@pytest.fixture(params=[ImportError, RuntimeError])
def without_faiss(request, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "faiss":
            raise request.param("no faiss")
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


def refuse_flat(queries, k, apart=None):
    raise AssertionError("the flat search was asked")


@pytest.fixture(params=[0, 2**22], ids=["blocks", "together"])
def always_prune(request, monkeypatch, one_thread):
    """Go the way of pruning even where it does not pay."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(pruned_search, "SURVIVORS", 1.0)
    monkeypatch.setattr(pruned_search, "TOGETHER", request.param)


def clusters(size, dimension, seed):
    centres = torch.randn(20, dimension, generator=torch.Generator().manual_seed(0)) * 10
    generator = torch.Generator().manual_seed(seed)
    members = torch.randint(20, (size,), generator=generator)
    return centres[members] + torch.randn(size, dimension, generator=generator)


def gaussian(size, dimension, seed):
    return torch.randn(size, dimension, generator=torch.Generator().manual_seed(seed))


def assert_exact(bank, queries, k, dtype, num_workers=None, rtol=1e-5):
    differences = (queries.double()[:, None] - bank.double()).square().sum(dim=2)
    expected = differences.sort(dim=1).values[:, :k]
    result = PrunedSearch(bank, refuse_flat, num_workers, dtype)(queries, k)
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=0)


both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@both_dtypes
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("data", [clusters, gaussian])
@pytest.mark.parametrize("size", [700, 83])
def test_pruned_search_is_exact(always_prune, dtype, k, data, size):
    # 83 rows are no multiple of a group, and fewer than the 100 directions of 400 columns.
    dimension = 128 if size == 700 else 400
    assert_exact(data(size, dimension, 1), data(150, dimension, 2), k, dtype)


def expected_apart(bank, queries, k, apart):
    differences = (queries.double()[:, None] - bank.double()).square().sum(dim=2)
    differences[apart.queries[:, None] == apart.rows] = torch.inf
    return differences.sort(dim=1).values[:, :k]


@both_dtypes
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("data", [clusters, gaussian])
def test_pruned_search_leaves_rows_of_the_own_group_out(always_prune, dtype, k, data):
    bank = data(600, 128, 1)
    queries = bank[:400] + 0.01  # whose nearest row is their own
    apart = Apart((torch.arange(400) // 40).int(), (torch.arange(600) // 40).int())
    found = PrunedSearch(bank, refuse_flat, dtype=dtype)(queries, k, apart)
    torch.testing.assert_close(found.double(), expected_apart(bank, queries, k, apart), rtol=1e-5, atol=0)


@pytest.mark.parametrize("search", [*SEARCHES, "shards", "pruned, few queries"])
def test_every_search_leaves_rows_of_the_own_group_out(search):
    make = SEARCHES | {
        "shards": lambda bank: spread(bank, [torch.device("cpu")] * 3, TorchSearch),
        "pruned, few queries": lambda bank: PrunedSearch(bank, TorchSearch(bank)),
    }
    bank = gaussian(100, 40, 1)
    queries, groups = bank[10:40] + 0.01, torch.randint(5, (100,), generator=torch.Generator().manual_seed(0)).int()
    groups[:34] = 0  # a whole shard
    apart = Apart(groups[10:40], groups)
    found = make[search](bank)(queries, 2, apart)
    torch.testing.assert_close(found.double(), expected_apart(bank, queries, 2, apart), rtol=1e-5, atol=0)
    assert apart.left == min(100 - int((groups == one).sum()) for one in apart.queries)


@both_dtypes
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1000.0), (1e-9, 0.0), (1e15, 0.0)])
def test_pruned_search_is_exact_at_any_scale_and_place(always_prune, dtype, scale, shift):
    assert_exact(clusters(300, 64, 1) * scale + shift, clusters(100, 64, 2) * scale + shift, 2, dtype)


@both_dtypes
def test_pruned_search_finds_every_copy_of_a_row(always_prune, dtype):
    bank = clusters(100, 64, 1).repeat(3, 1)
    result = PrunedSearch(bank, refuse_flat, dtype=dtype)(bank[:100], 4)
    assert (result[:, :3] == 0).all()
    assert (result[:, 3] > 0).all()
    assert_exact(torch.ones(100, 64), clusters(100, 64, 1), 2, dtype)


@both_dtypes
def test_pruned_search_is_not_misled_by_its_directions(always_prune, dtype):
    # 64 columns give 16 directions, the first 16 axes. Along those the decoys are at distance 1 of their query, the
    # nearest rows at 2; but each decoy is 30 off along another axis.
    queries = torch.cat([gaussian(100, 16, 1) * 100, torch.zeros(100, 48)], dim=1)
    nearest, decoys = queries.clone(), queries.clone()
    nearest[:, 0] += 2
    decoys[:, 1] += 1
    decoys[range(100), 16 + torch.arange(100) % 48] = 30
    bank = torch.cat([decoys, nearest])
    search = PrunedSearch(bank, refuse_flat, dtype=dtype)
    assert search._basis[:16].float().square().sum() > 15.5
    torch.testing.assert_close(search(queries, 1), torch.full((100, 1), 4.0), rtol=1e-5, atol=0)
    assert_exact(bank, queries, 2, dtype)


@both_dtypes
def test_pruned_search_keeps_what_rounding_cannot_tell_apart(always_prune, dtype):
    # Rows at equal distance but for parts in ten thousand, far below the steps of bfloat16.
    axes = torch.eye(64).repeat(8, 1) * (10 + torch.arange(512)[:, None] * 1e-5)
    assert_exact(axes, gaussian(100, 64, 1) * 1e-3, 5, dtype)


@both_dtypes
@pytest.mark.parametrize("spread", [0.001, 0.01, 0.03])
@pytest.mark.parametrize("rank", [8, 32])
def test_pruned_search_allows_for_what_rounding_moves(always_prune, dtype, spread, rank):
    # All of the data lies along the search's directions, so the bound has no play of its own: within a cluster far from
    # the mean, rounding to bfloat16 moves rows by as much as they are apart.
    basis = torch.linalg.qr(gaussian(128, rank, 0)).Q

    def flat_clusters(size, seed):
        centres = torch.nn.functional.normalize(gaussian(4, rank, 3))
        members = torch.arange(size) % 4
        return (centres[members] + spread * gaussian(size, rank, seed)) @ basis.T

    assert_exact(flat_clusters(400, 1), flat_clusters(150, 2), 2, dtype, rtol=1e-4)


@pytest.mark.parametrize("together", [0, 2**22])
@pytest.mark.parametrize(
    ("queries", "k"),
    [
        (gaussian(200, 128, 2), 1),
        (clusters(10, 128, 2), 1),
        (clusters(200, 128, 2), 500),
        (torch.full((99, 128), torch.nan), 1),
    ],
    ids=["nothing to prune", "few queries", "all neighbours", "nan"],
)
def test_flat_search_takes_over_where_pruning_does_not_pay(queries, k, together, monkeypatch):
    monkeypatch.setattr(pruned_search, "TOGETHER", together)
    asked = []

    def flat(queries, k, apart):
        asked.append((len(queries), k))
        return torch.zeros(len(queries), k)

    bank = gaussian(500, 128, 1) if len(queries) == 200 and k == 1 else clusters(500, 128, 1)
    assert PrunedSearch(bank, flat)(queries, k).shape == (len(queries), k)
    assert asked == [(len(queries), k)]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("workers", "expected"), [(1, 1), (2, 2), (8, 2), (None, 2)])
def test_workers_have_one_torch_thread_each_and_the_caller_is_one_of_them(two_threads, workers, expected):
    together = threading.Barrier(expected)  # passed by so many threads at once, no fewer
    seen = []

    def double(item):
        together.wait(timeout=30)
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return 2 * item

    assert pruned_search.by_single_threads(double, range(2 * expected), workers) == [*range(0, 4 * expected, 2)]
    assert len({thread for thread, _ in seen}) == expected
    assert threading.get_ident() in {thread for thread, _ in seen}
    assert {threads for _, threads in seen} == {1}
    assert torch.get_num_threads() == 2


def test_an_error_of_a_worker_is_raised_and_the_threads_come_back(two_threads):
    together = threading.Barrier(2)

    def fail(thread):
        together.wait(timeout=30)
        if (threading.get_ident() == here) == thread:
            raise ZeroDivisionError

    here = threading.get_ident()
    for of_caller in (True, False):
        with pytest.raises(ZeroDivisionError):
            pruned_search.by_single_threads(fail, [of_caller] * 2, None)
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("num_workers", "most", "blocks"),
    [(1, 512, [500]), (2, 512, [250, 250]), (None, 512, [250, 250]), (None, 200, [125] * 4)],
)
def test_the_workers_of_a_search_get_as_much_work_each(
    always_prune, two_threads, monkeypatch, num_workers, most, blocks
):
    monkeypatch.setattr(pruned_search, "TOGETHER", 0)
    sizes = []
    survivors = PrunedSearch._survivors

    def watched(self, block, k):
        sizes.append(len(block[0]))
        return survivors(self, block, k)

    monkeypatch.setattr(PrunedSearch, "_survivors", watched)
    monkeypatch.setattr(pruned_search, "BLOCK", most * 304)  # 300 rows and the padding to groups of 16
    assert_exact(clusters(300, 64, 1), clusters(500, 64, 2), 1, torch.float32, num_workers)
    assert sizes == [32, 32, *blocks]  # the probes come first


@pytest.mark.parametrize(
    ("num_workers", "scores", "asked"), [(None, 300 * 304, 0), (None, 300 * 304 - 1, 4), (1, 2**22, 3)]
)
def test_torchs_threads_search_together_for_few_scores(
    always_prune, two_threads, monkeypatch, num_workers, scores, asked
):
    monkeypatch.setattr(pruned_search, "TOGETHER", scores)
    bank, queries = clusters(300, 64, 1), clusters(300, 64, 2)
    search = PrunedSearch(bank, refuse_flat, num_workers, torch.float32)
    items = []
    real = pruned_search.by_single_threads

    def watched(function, blocks, workers):
        items.extend(blocks)
        return real(function, blocks, workers)

    monkeypatch.setattr(pruned_search, "by_single_threads", watched)
    expected = (queries.double()[:, None] - bank.double()).square().sum(dim=2).amin(dim=1)
    torch.testing.assert_close(search(queries, 1)[:, 0].double(), expected, rtol=1e-5, atol=0)
    assert len(items) == asked


def test_bank_prunes_where_it_is_large_and_wide():
    pytest.importorskip("faiss")
    bank, queries = clusters(2000, 128, 1), clusters(300, 128, 2)
    pruned = MemoryBank(bank)
    assert pruned.search.name == "pruned"
    assert MemoryBank(bank[:500]).search.name == MemoryBank(bank[:, :64]).search.name == "faiss-cpu"
    expected = (queries.double()[:, None] - bank.double()).square().sum(dim=2).sort(dim=1).values[:, :3]
    torch.testing.assert_close(pruned.distances(queries, 3).double(), expected, rtol=1e-5, atol=0)
    assert (pruned.distances(queries, 3) == pruned.distances(queries, 3)).all()


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
    sharded = search.spread(bank, [torch.device("cpu")] * devices, TorchSearch)
    assert sharded.name == f"{min(rows, devices)} x torch"
    torch.testing.assert_close(sharded(queries, 2), TorchSearch(bank)(queries, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("reaches_gpu", [True, False])
def test_gpu_search_equals_cpu_search(reaches_gpu, monkeypatch):
    if reaches_gpu and not search.faiss_reaches_gpu():
        pytest.skip("FAISS has no GPU support here")
    monkeypatch.setattr(memory_bank, "faiss_reaches_gpu", lambda: reaches_gpu)
    torch.manual_seed(0)
    bank, queries = torch.randn(3000, 256), torch.randn(500, 256)
    expected = TorchSearch(bank)(queries, 3)
    result = MemoryBank(bank.cuda(), on_gpu=True).distances(queries.cuda(), 3)
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_bank_without_room_on_the_gpu_is_searched_on_the_cpu(monkeypatch, caplog):
    monkeypatch.setattr(memory_bank, "available_bytes", lambda device: 2**20)
    bank = MemoryBank(torch.rand(40, 16).cuda(), on_gpu=True)
    assert bank.search.name == "faiss-cpu"
    assert "no room there for a bank of 0 MiB" in caplog.text
    assert bank.distances(torch.rand(3, 16).cuda(), 2).is_cuda
