"""Good images that a finished bank has not learnt: the greedy selection goes on where it ended."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchcore.calibration import Calibration
from patchcore.datasets.loader import PrefetchLoader, turn
from patchcore.methods.calibrating import calibrate
from patchcore.methods.patchcore.active_points import product_elements, squared_distances
from patchcore.methods.patchcore.coreset import Progress, greedy_order, project
from patchcore.methods.patchcore.patch_store import BankSize, make_stores
from patchcore.methods.patchcore.sampler import kept_of
from patchcore.methods.sources import Sources, images_in
from patchcore.methods.stored_model import Training
from patchcore.methods.training_images import Album, TrainingImages, hash_of
from patchcore.system.timing import StageTimer, progress_bar
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from patchcore.methods.batch_scores import BatchScores
    from patchcore.methods.patchcore.detector import Member, PatchCore
    from patchcore.methods.sources import ImageLike

log = logging.getLogger(__name__)

_READERS = 8  # threads that decode images
_SHOWN = 5  # names in a message


@torch.inference_mode()
def update(
    detector: PatchCore, images: ImageLike | list[Any] | tuple[Any, ...], max_bank_size: int | None, batch_size: int
) -> None:
    """Learn further images, see `PatchCore.update`; if that fails, the detector is as it was."""
    training = detector.training or Training()
    rooms = _rooms(detector, max_bank_size)
    new = _unknown(detector, images_in(images), batch_size)
    album = Album()
    timer = StageTimer(detector.workspace.device)
    sizes = [
        BankSize(
            patches=new.count * math.prod(member.grid),
            kept=len(member.bank) + _kept(detector, new.count * math.prod(member.grid), room),
            dimension=member.embedding.target_dimension,
        )
        for member, room in zip(detector.members, rooms, strict=True)
    ]
    stores = make_stores(sizes, [member.encoder.device for member in detector.members])
    for batch in album.watch(new):
        for member, store in zip(detector.members, stores, strict=True):
            store.add(member.embed(batch, timer))

    generator = torch.Generator().manual_seed(training.seed)
    members, grids = [], []
    for before, room in zip(detector.members, rooms, strict=True):
        patches = stores.pop(0).features()
        chosen = _choose(detector, before, patches, room, generator)
        member, grid = _with_rows(detector, before, patches, chosen, new)
        members.append(member)
        grids.append(grid)
        log.info("memory bank: %d patches, %d of them new", len(member.bank), len(chosen))
    if any(member.origins is None for member in members):
        log.info("the model does not say which images its patches come from: they cannot explain verdicts")
    detector.calibration = _calibrated(detector, members, grids, batch_size)
    detector.members, detector.album = members, detector.album.joined(album)
    known = training.images is not None
    detector.training = dataclasses.replace(
        training,
        images=training.images + new.count if training.images is not None else None,
        fingerprint=detector.album.fingerprint() if known else None,
        train_val_split=1.0,  # what was held out from training may be among the new images
        run=None,
    )


def continue_greedy(
    bank: Tensor,
    patches: Tensor,
    count: int,
    generator: torch.Generator,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """Choose patches, each the farthest from all rows of a bank and all patches chosen before it.

    Args:
        bank: (K, D) float32 rows.
        patches: (N, D) float32.
        count: at most N.
        generator: a CPU generator, of the projection in which distances are measured.
        device: where they are.

    Returns:
        (count,) int64 row indices of `patches` on the CPU, in the order of choice.
    """
    state = generator.get_state()
    points = project(patches, generator, device)
    generator.set_state(state)  # the same projection
    rows = project(bank, generator, device)
    norms, row_norms = points.square().sum(dim=1), rows.square().sum(dim=1)
    size = max(1, product_elements(device) // len(rows))
    nearest = [
        squared_distances(part, part_norms, rows, row_norms).amin(dim=1)
        for part, part_norms in zip(points.split(size), norms.split(size), strict=True)
    ]
    return greedy_order(points, torch.cat(nearest).sqrt(), count, progress)


def _rooms(detector: PatchCore, max_bank_size: int | None) -> list[int | None]:
    """How many rows may be added to each member's bank; None where there is no limit."""
    if max_bank_size is None:
        if detector.config.sampler is None:
            raise PatchCoreError(
                "the model does not say what share of the patches it keeps: say how large its memory bank may become"
                " (--max_bank_size)"
            )
        return [None] * len(detector.members)
    largest = max(len(member.bank) for member in detector.members)
    if max_bank_size <= largest:
        raise PatchCoreError(
            f"--max_bank_size {max_bank_size} leaves no room: the memory bank has {largest} patches already; give a"
            " larger number, or train again with fewer (sampler -p)"
        )
    return [max_bank_size - len(member.bank) for member in detector.members]


def _unknown(detector: PatchCore, photos: Sequence[ImageLike], batch_size: int) -> TrainingImages:
    """The photos that the model has not learnt, each once, in as many views as it has of the others."""
    known = {photo.pixels for photo in detector.album.photos}
    found: list[Tensor] = []  # small beside their patches
    names: list[str] = []
    left_out: list[str] = []
    number = 0
    for batch in PrefetchLoader(
        dataset=Sources(photos, detector.geometry), batch_size=batch_size, num_workers=_READERS
    ):
        for image, pixels in zip(batch, batch.permute(0, 2, 3, 1).contiguous().numpy(), strict=True):
            photo, hashed = photos[number], hash_of(pixels)
            number += 1
            name = Path(photo).name if isinstance(photo, str | Path) else f"image {number - 1}"
            if hashed in known:
                left_out.append(name)
                continue
            known.add(hashed)
            found.append(image)
            names.append(name)
    if left_out:
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        log.info("left out, since the model has learnt them already: %s%s", ", ".join(left_out[:_SHOWN]), more)
    if not found:
        raise PatchCoreError("there is nothing to update with: the model has learnt all of these images already")
    views = _views(detector)
    batched = (found[first : first + batch_size] for first in range(0, len(found), batch_size))
    turned = (torch.stack([turn(image, view) for image in part for view in range(views)]) for part in batched)
    return TrainingImages(batches=turned, count=len(found) * views, views=views, names=names)


def _views(detector: PatchCore) -> int:
    """In how many views the detector has learnt every photo; 1 where it does not say."""
    images, photos = (detector.training or Training()).images, len(detector.album.photos)
    return images // photos if images and photos else 1


def _kept(detector: PatchCore, patches: int, room: int | None) -> int:
    """How many of so many new patches are kept."""
    kept = patches if detector.config.sampler is None else kept_of(patches, *detector.config.thinning)
    return kept if room is None else min(kept, room)


def _choose(
    detector: PatchCore, member: Member, patches: Tensor, room: int | None, generator: torch.Generator
) -> Tensor:
    """Which of the new (N, D) patches are kept, (count,) int64 on the CPU: by the model's sampler, or greedily."""
    count, sampler = _kept(detector, len(patches), room), detector.config.sampler
    if sampler == "identity" and count == len(patches):
        return torch.arange(count)
    if sampler == "random":
        return torch.randperm(len(patches), generator=generator)[:count].sort().values
    with progress_bar("coreset", count, "patch") as bar:
        return continue_greedy(
            member.bank.features, patches, count, generator, member.encoder.device, progress=bar.update
        )


def _with_rows(
    detector: PatchCore, before: Member, patches: Tensor, chosen: Tensor, new: TrainingImages
) -> tuple[Member, Tensor]:
    """The member with new rows behind the old ones, and its (N, h, w) scores of the new photos, each left out."""
    training = detector.training or Training()
    of_photo = math.prod(before.grid) * new.views
    if before.origins is not None and training.images is not None:
        old, first = before.origins, training.images // new.views
    else:
        old, first = torch.zeros(len(before.bank), dtype=torch.int64), 1  # as if they came from a photo 0
    member = copy.copy(before)
    rows = torch.cat([before.bank.features, patches[chosen.to(patches.device)].cpu()])
    member.remember(rows, detector.config, torch.cat([old, chosen + first * of_photo]))
    member.first_alike = None
    if old is before.origins:
        alike = detector.album.first_alike()
        member.first_alike = torch.tensor([*alike, *range(first, first + new.count // new.views)], dtype=torch.int32)
    grid = detector.left_out(member, patches, new, first)
    if grid is None:
        raise PatchCoreError("too few images: without one of them the memory bank has fewer patches than neighbours")
    if old is not before.origins:
        member.origins = None
    return member, grid


def _calibrated(
    detector: PatchCore, members: Sequence[Member], grids: Sequence[Tensor], batch_size: int
) -> Calibration:
    """The scores of old and new photos, each left out of the bank that has grown.

    Of the old ones the pictures in the model are scored, which compression has changed a little. Their stored scores
    are upper bounds: a row more can only bring a patch nearer. The lower of the two is kept; it is about what the photo
    itself would get.

    Args:
        members: with the new rows.
        grids: of every member, (N, h, w) scores of the new photos.
    """
    old, new, photos = detector.calibration, detector.of_grids(grids), len(detector.album)
    if not photos or any(member.origins is None for member in members):
        log.info("calibration: by the new images alone, as the model has no pictures of the earlier ones")
        return calibrate("leave_one_out", new)
    found = calibrate("leave_one_out", itertools.chain(_of_pictures(detector, members, batch_size), new))
    if old is None or old.kind != "leave_one_out" or len(old) != photos:
        if old is not None:
            log.info(
                "calibration: all %d photos, each left out, replace %d images (%s)", len(found), len(old), old.kind
            )
        return found
    scores = found.scores.copy()
    scores[:, :photos] = np.minimum(scores[:, :photos], old.scores)
    return dataclasses.replace(found, scores=scores)


def _of_pictures(detector: PatchCore, members: Sequence[Member], batch_size: int) -> Iterator[BatchScores]:
    """What members say of the old photos by their pictures, each left out."""
    timer, views = StageTimer(detector.workspace.device), _views(detector)
    for numbers in torch.arange(len(detector.album), dtype=torch.int32).split(batch_size):
        pictures = np.stack([detector.album.picture(number) for number in numbers.tolist()])
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # (B, 3, H, W)
        grids = []
        for member in members:
            patches, of_view = member.embed(pixels, timer).flatten(0, 2), math.prod(member.grid)
            photos = numbers.repeat_interleave(of_view)
            scores = member.scores_left_out(patches, photos, of_view * views, detector.config.num_nn)
            grids.append(scores.reshape(-1, *member.grid))
        yield from detector.of_grids(grids)
