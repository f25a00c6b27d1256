"""Where patches are kept, and what is said of the memory before a run."""

import pytest
import torch

from patchcore import experiment
from patchcore.category_run import Category
from patchcore.config import DatasetConfig
from patchcore.methods.patchcore import patch_store
from patchcore.methods.patchcore.coreset import PROJECTION_DIMENSION, project
from patchcore.methods.patchcore.patch_store import HOST, BankSize, PatchStore, choose_places, expected_bytes
from patchcore.methods.patchcore.sampler import kept_of, sample

GPU, OTHER_GPU = torch.device("cuda", 0), torch.device("cuda", 1)
GIB = 2**30
SIZE = BankSize(patches=2**20, kept=2**17, dimension=1024)  # 4 GiB of patches


@pytest.fixture
def free(monkeypatch):
    """Sets how much memory is free on every device."""

    def set_free(**by_type_and_index):
        sizes = {"cpu": 0, **by_type_and_index}
        monkeypatch.setattr(patch_store, "available_bytes", lambda device: sizes[str(device).replace(":", "")])

    return set_free


def test_patches_stay_on_a_gpu_that_has_room(free):
    free(cuda0=20 * GIB)
    assert choose_places([SIZE], [GPU]) == [GPU]


def test_a_full_gpu_leaves_patches_to_the_host(free):
    free(cuda0=5 * GIB)
    assert choose_places([SIZE], [GPU]) == [HOST]


def test_members_on_one_gpu_share_its_memory(free):
    free(cuda0=15 * GIB, cuda1=15 * GIB)
    assert choose_places([SIZE, SIZE, SIZE, SIZE], [GPU, GPU, GPU, OTHER_GPU]) == [GPU, GPU, HOST, OTHER_GPU]


def test_the_host_takes_what_comes(free):
    free(cpu=1)
    assert choose_places([SIZE], [HOST]) == [HOST]


def test_memory_is_expected_where_patches_are_kept_and_banks_are_built(free):
    free(cuda0=15 * GIB)
    bank = 4 * SIZE.kept * SIZE.dimension * 4
    on_gpu = 4 * GIB + SIZE.coreset_bytes(GPU)
    assert expected_bytes([SIZE], [GPU]) == {HOST: bank, GPU: on_gpu}
    assert expected_bytes([SIZE] * 3, [GPU] * 3) == {HOST: 4 * GIB + bank, GPU: 4 * GIB + on_gpu}
    few = BankSize(patches=2**20, kept=1, dimension=1024)
    assert expected_bytes([few], [HOST]) == {HOST: 4 * GIB + few.coreset_bytes(HOST)}


def test_the_expected_memory_of_a_coreset_is_what_it_holds():
    """The peak while a coreset is picked from 40,000 patches, by torch's own count of allocations."""
    size = BankSize(patches=40_000, kept=4000, dimension=256)
    features = torch.rand(size.patches, size.dimension, generator=torch.Generator().manual_seed(0))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        sample(features, "approx_greedy_coreset", 0.1, torch.Generator())
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0.5 * size.coreset_bytes(HOST) < peak <= size.coreset_bytes(HOST)


def test_patches_come_back_in_their_order():
    store = PatchStore(BankSize(patches=8, kept=8, dimension=3), HOST)
    patches = torch.rand(4, 1, 2, 3)
    for batch in patches.split(3):
        store.add(batch)
    assert (store.features() == patches.reshape(8, 3)).all()


def test_missing_patches_are_told():
    store = PatchStore(BankSize(patches=8, kept=8, dimension=3), HOST)
    store.add(torch.rand(3, 1, 2, 3))
    with pytest.raises(ValueError, match="expected 8 patches, got 6"):
        store.features()


@pytest.mark.parametrize(("name", "kept"), [("identity", 100), ("random", 12), ("approx_greedy_coreset", 12)])
def test_what_is_kept_is_known_before(name, kept):
    assert kept_of(100, name, 0.125) == kept == len(sample(torch.rand(100, 8), name, 0.125, torch.Generator()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_projection_in_parts_is_that_of_the_whole():
    features = torch.rand(2**16 + 5, 256)
    on_host = project(features, torch.Generator().manual_seed(0))
    in_parts = project(features, torch.Generator().manual_seed(0), GPU)
    assert in_parts.shape == (len(features), PROJECTION_DIMENSION)
    torch.testing.assert_close(in_parts.cpu(), on_host, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("available", "level"), [(2**40, "INFO"), (2**20, "WARNING")])
@pytest.mark.parametrize("augment", [False, True])
def test_a_run_says_what_it_needs_before_it_begins(available, level, augment, monkeypatch, caplog):
    class Largest:
        def expected_bytes(self, num_images):
            return {HOST: num_images * 2**20}

    def category(name, count):
        return Category(name=name, row=name, train=range(count), held_out=(), test=())

    monkeypatch.setattr(experiment, "available_bytes", lambda device: available)
    caplog.set_level("INFO", "patchcore")
    dataset = DatasetConfig(name="mpdd", path=".", categories=("a",), resize=64, imagesize=64, augment=augment)
    categories = [category("small", 30), category("large", 300), category("none", 0)]
    experiment._announce_memory({"large": Largest()}, dataset, categories)  # no other is asked
    (record,) = caplog.records
    assert record.levelname == level
    expected = "2400 training images take about 2.3 GiB" if augment else "300 training images take about 300 MiB"
    assert record.message.startswith(f"{expected} of host memory, ")
