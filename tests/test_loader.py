"""Batches: their order, their threads, and how they end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from golden import DATA
from image_files import one_line, write_noise
from patchcore.datasets.geometry import Geometry
from patchcore.datasets.images import load_image
from patchcore.datasets.layout import scan_train
from patchcore.datasets.loader import ImageDataset, PrefetchLoader
from patchcore.types import PatchCoreError, Sample

GEOMETRY = Geometry(resize=12, imagesize=8)


@pytest.fixture
def noisy(tmp_path: Path) -> list[Sample]:
    return write_noise(tmp_path)


def load(dataset: ImageDataset, batch_size: int, num_workers: int, *, pin_memory: bool = False) -> PrefetchLoader:
    return PrefetchLoader(dataset=dataset, batch_size=batch_size, num_workers=num_workers, pin_memory=pin_memory)


def test_dataset_reads_in_the_order_of_the_samples(noisy: list[Sample]) -> None:
    dataset = ImageDataset(noisy[::-1], GEOMETRY)
    assert len(dataset) == 11
    for i in range(11):
        assert torch.equal(dataset[i], GEOMETRY.image(load_image(noisy[10 - i].path)))


def test_augment_covers_the_symmetries_of_the_square(noisy: list[Sample]) -> None:
    plain, augmented = ImageDataset(noisy[:2], GEOMETRY), ImageDataset(noisy[:2], GEOMETRY, augment=True)
    assert len(augmented) == 16
    for i in range(2):
        image = plain[i].numpy()
        views = [augmented[8 * i + k].numpy() for k in range(8)]
        np.testing.assert_array_equal(views[0], image)
        turned = [np.rot90(image, k, (1, 2)) for k in range(4)]
        expected = {view.tobytes() for view in [*turned, *(np.flip(view, 2) for view in turned)]}
        assert len(expected) == 8
        assert {view.tobytes() for view in views} == expected
        # Closed: to turn or to mirror a view gives a view again.
        assert {np.rot90(view, 1, (1, 2)).tobytes() for view in views} == expected
        assert {np.flip(view, 1).tobytes() for view in views} == expected


def test_augmented_views_do_not_share_memory(noisy: list[Sample]) -> None:
    dataset = ImageDataset(noisy, GEOMETRY, augment=True)
    expected = dataset[0].clone()
    for k in range(8):
        dataset[k].zero_()
    assert torch.equal(dataset[0], expected)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 5])
@pytest.mark.parametrize("augment", [False, True])
def test_loader_keeps_the_order(noisy: list[Sample], num_workers: int, augment: bool) -> None:
    dataset = ImageDataset(noisy, GEOMETRY, augment=augment)
    expected = torch.stack([dataset[i] for i in range(len(dataset))])
    loader = load(dataset, 4, num_workers)
    sizes = [4] * 22 if augment else [4, 4, 3]
    assert len(list(loader)) == len(sizes)
    for _ in range(2):  # a loader can be walked again
        batches = list(loader)
        assert [len(batch) for batch in batches] == sizes
        assert torch.equal(torch.cat(batches), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_of_nothing(num_workers: int) -> None:
    loader = load(ImageDataset([], GEOMETRY), 4, num_workers)
    assert list(loader) == []


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_bad_image_in_the_middle_arrives_as_it_was_raised(noisy: list[Sample], num_workers: int) -> None:
    bad = noisy[5].path
    bad.write_bytes(bad.read_bytes()[:100])
    batches = []
    with pytest.raises(PatchCoreError) as error:
        batches.extend(load(ImageDataset(noisy, GEOMETRY), 4, num_workers))
    assert len(batches) == 1  # the whole batch before it
    assert one_line(error).startswith(f"cannot read the image {bad}: ")
    assert not decoding_threads()


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("interruption", [None, RuntimeError, KeyboardInterrupt])
def test_leaving_early_ends_the_threads(noisy: list[Sample], interruption: type[BaseException] | None) -> None:
    reads: list[int] = []

    class Counted(ImageDataset):
        def __getitem__(self, index: int) -> torch.Tensor:
            reads.append(index)
            if index >= 4:
                time.sleep(0.05)  # so that the first batch is out while most of those ahead still wait
            return super().__getitem__(index)

    def walk() -> None:
        for _ in load(Counted(noisy * 20, GEOMETRY), 4, 2):
            assert decoding_threads()
            if interruption:
                raise interruption
            break

    if interruption:
        with pytest.raises(interruption):
            walk()
    else:
        walk()
    assert not decoding_threads()
    assert 4 <= len(reads) <= 8  # the batch taken and what had begun, not all 12 that were queued, or 220


def test_loader_reads_a_batch_ahead_and_no_further(noisy: list[Sample]) -> None:
    reads: list[int] = []
    whole = threading.Event()

    class Signalling(ImageDataset):
        def __getitem__(self, index: int) -> torch.Tensor:
            reads.append(index)
            if index == 9:
                whole.set()
            return super().__getitem__(index)

    batches = iter(load(Signalling(noisy * 20, GEOMETRY), 4, 1))
    next(batches)
    # Nobody has asked for the second batch yet: 4 images taken, 4 ahead, and two for the thread.
    assert whole.wait(timeout=10)
    time.sleep(0.05)
    assert reads == list(range(10))
    batches.close()


@pytest.mark.parametrize(("batch_size", "num_workers", "named"), [(0, 0, "batch_size"), (4, -1, "num_workers")])
def test_loader_checks_itself(batch_size: int, num_workers: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} must be at least"):
        load(ImageDataset([], GEOMETRY), batch_size, num_workers)


def test_pinning_without_cuda_is_no_error(noisy: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (batch,) = load(ImageDataset(noisy, GEOMETRY), 11, 0, pin_memory=True)
    assert batch.shape == (11, 3, 8, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pinning_with_cuda(noisy: list[Sample]) -> None:
    dataset = ImageDataset(noisy, GEOMETRY)
    (pinned,) = load(dataset, 11, 2, pin_memory=True)
    (pageable,) = load(dataset, 11, 2)
    assert pinned.is_pinned()
    assert not pageable.is_pinned()
    assert torch.equal(pinned, pageable)


@pytest.mark.skipif(not (DATA / "mvtec_mini").is_dir(), reason="../shared/data/mvtec_mini is not there")
def test_a_real_batch_equals_torchvision() -> None:
    train = scan_train(DATA / "mvtec_mini", "hazelnut")
    reference = transforms.Compose(
        [
            transforms.Resize(200),
            transforms.CenterCrop(160),
            transforms.PILToTensor(),
        ]
    )
    (batch,) = load(ImageDataset(train[:4], Geometry(resize=200, imagesize=160)), 4, 2)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    with_torchvision = torch.stack([reference(Image.open(s.path).convert("RGB")) for s in train[:4]])
    assert torch.equal(batch, with_torchvision)
