"""Nearest-neighbour search: FAISS's flat index, against the package's memory bank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.inputs import Inputs
from benchmarks.measure import Comparison, Report, Table, Target, Work, at_least, compare
from patchcore.methods.patchcore.memory_bank import MemoryBank
from patchcore.methods.patchcore.pruned_search import MOST_DIRECTIONS
from patchcore.methods.patchcore.search import faiss_installed
from patchcore.system.devices import native_bfloat16

NEIGHBOURS = (1, 3)
NORMS = 3  # columns of the narrow product that hold the norms


class FlatIndex:
    """FAISS's flat float32 index on the CPU; distances and a partial sort on CUDA, or where there is no FAISS."""

    def __init__(self, bank: Tensor) -> None:
        self._bank = bank
        self._index = None
        if bank.device.type == "cpu" and faiss_installed():
            import faiss

            faiss.omp_set_num_threads(torch.get_num_threads())
            self._index = faiss.IndexFlatL2(bank.shape[1])
            self._index.add(bank.numpy())

    def __call__(self, queries: Tensor, k: int) -> Tensor:
        """(Q, k) squared distances to the nearest rows, ascending."""
        if self._index is not None:
            return torch.from_numpy(self._index.search(queries.numpy(), k)[0])
        distances = torch.cdist(queries, self._bank, compute_mode="use_mm_for_euclid_dist")
        return distances.topk(k, largest=False).values.square()


def relative(reference: Tensor, ours: Tensor) -> float:
    """The largest difference relative to the reference's distance."""
    return ((reference - ours).abs() / reference.abs().clamp(min=torch.finfo(torch.float32).tiny)).max().item()


def exact_distances(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """(Q, k) squared distances in float64, ascending."""
    rows = []
    bank = bank.double()
    norms = bank.square().sum(dim=1)
    for part in queries.double().split(256):
        squares = torch.addmm(norms[None], part, bank.T, alpha=-2) + part.square().sum(dim=1, keepdim=True)
        rows.append(squares.topk(k, largest=False).values)
    return torch.cat(rows)


def work(queries: Tensor, bank: Tensor, *, pruned: bool) -> Work:
    """The products that are made, and both matrices read once.

    The flat search multiplies all queries with all rows. The pruned one first projects the queries and multiplies
    in the narrow space; distances of the few pairs left are not counted.
    """
    (number, dimension), rows = queries.shape, len(bank)
    nbytes = queries.nbytes + bank.nbytes
    if not pruned:
        return Work(operations=2 * number * rows * dimension, nbytes=nbytes)
    narrow = 2 * number * (rows * (MOST_DIRECTIONS + NORMS) + dimension * MOST_DIRECTIONS)
    return Work(operations=narrow, nbytes=nbytes, precision="bfloat16" if native_bfloat16() else "float32")


@torch.inference_mode()
def run(inputs: Inputs) -> Report:
    """Compare on the patches of a batch of test images, with the smallest and the largest bank."""
    settings = inputs.settings
    device = settings.device
    report = Report()
    errors = []
    queries = inputs.queries
    for images in sorted({settings.sizes[0], settings.sizes[-1]}):
        bank = inputs.bank(images)
        flat, ours = FlatIndex(bank), MemoryBank(bank, on_gpu=device.type == "cuda")
        size = f"{len(queries):,} queries, bank {len(bank):,} x {bank.shape[1]}"
        exact = exact_distances(queries, bank, max(NEIGHBOURS))
        for k in NEIGHBOURS:
            row = _compare(inputs, f"{size}, {k} nearest", flat, ours, queries, bank, k)
            report.comparisons.append(row)
            theirs, found = flat(queries, k), ours.distances(queries, k)
            apart, off = relative(theirs, found), relative(exact[:, :k], found)
            errors.append(
                (
                    f"{len(bank):,}, {k} nearest",
                    f"{apart:.1e}",
                    f"{relative(exact[:, :k], theirs):.1e}",
                    f"{off:.1e}",
                )
            )
            if images == 289 and k == 1:
                report.targets += [
                    at_least("search, bank 22,657 x 1024, over flat", 2, row.ratio),
                    Target(
                        name="search, bank 22,657 x 1024, squared distances",
                        required="at most 1e-4 relative",
                        measured=f"{apart:.1e} from flat, {off:.1e} from float64",
                        holds=min(apart, off) <= 1e-4,  # where distances are small, the flat index's own are off
                    ),
                ]
        report.comparisons.append(_compare_building(inputs, bank))
    report.tables.append(
        Table(
            title="Largest relative error of a squared distance",
            header=("bank", "ours from flat", "flat from float64", "ours from float64"),
            rows=errors,
        )
    )
    return report


def _compare(
    inputs: Inputs, case: str, flat: FlatIndex, ours: MemoryBank, queries: Tensor, bank: Tensor, k: int
) -> Comparison:
    return compare(
        "search",
        case,
        reference=lambda: flat(queries, k),
        ours=lambda: ours.distances(queries, k),
        difference=lambda a, b: f"{relative(a, b):.1e} relative",
        device=inputs.settings.device,
        repeats=inputs.settings.repeats,
        work=work(queries, bank, pruned=ours.search.name == "pruned"),
    )


def _compare_building(inputs: Inputs, bank: Tensor) -> Comparison:
    on_gpu = inputs.settings.device.type == "cuda"
    build: Callable[[], MemoryBank] = lambda: MemoryBank(bank, on_gpu=on_gpu)  # noqa: E731 - the type is worth a name
    return compare(
        "search: index",
        f"bank {len(bank):,} x {bank.shape[1]}, once per category",
        reference=lambda: FlatIndex(bank),
        ours=build,
        difference=lambda a, b: "-",
        device=inputs.settings.device,
        repeats=inputs.settings.repeats,
    )
