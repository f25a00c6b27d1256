"""Exact nearest-neighbour search on the CPU that leaves out rows which a bound proves too far."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.methods.patchcore.search import Apart, Search
from patchcore.system.devices import native_bfloat16

MOST_DIRECTIONS = 157  # with the 3 columns that hold the norms: 160, a width that matrix kernels like
SAMPLE = 4096  # bank rows that give the directions, enough for their leading ones
GROUP = 16  # bank rows that share one maximum, so that most of them are never looked at
BLOCK = 2**20  # scores that a worker holds at once, few enough for the caches
TOGETHER = 2**22  # scores, as of one image, up to which torch's own threads share every operation
CHUNK = 2**13  # queries whose surviving pairs are held at once
PROBES = 64  # queries that tell whether pruning pays; below that number it is not worth the overhead
SURVIVORS = 1 / 32  # share of the bank surviving above which the flat search is faster (measured: 1/20)
ROUNDOFF = 2.0**-8  # of bfloat16: the relative error of rounding to it
FLOAT_ROUNDOFF = 2.0**-24
UNDERFLOW = 1e-30  # far above what products of float32 lose where they underflow

Item = TypeVar("Item")
Made = TypeVar("Made")


def principal_directions(centred: Tensor, number: int) -> Tensor:
    """Roughly the leading principal directions of (K, D) rows by subspace iteration: (D, number), orthonormal."""
    sample = centred[:: math.ceil(len(centred) / SAMPLE)]
    sample = sample / sample.abs().max().clamp(min=UNDERFLOW)  # neither overflow nor underflow
    covariance = sample.T @ sample
    basis = covariance[:, :: covariance.shape[1] // number][:, :number]
    for _ in range(3):
        basis = torch.linalg.qr(covariance @ basis).Q
    return basis


def by_single_threads(function: Callable[[Item], Made], items: Sequence[Item], workers: int | None) -> list[Made]:
    """`function` of each item, by so many workers (at most torch's threads, None: as many) with one torch thread each.

    Threads that meet after every small operation, as torch's do, wait for each other far longer than they compute,
    the more so on a busy machine. The calling thread is one of the workers. Meanwhile torch elsewhere in the process
    may get one thread, too.
    """
    threads = torch.get_num_threads()
    helpers = min(workers or threads, threads, len(items)) - 1
    left = deque(enumerate(items))
    made: dict[int, Made] = {}

    def work() -> None:
        torch.set_num_threads(1)
        while True:
            try:
                number, item = left.popleft()
            except IndexError:
                return
            made[number] = function(item)

    try:
        with ThreadPoolExecutor(max(helpers, 1)) as pool:
            others = [pool.submit(work) for _ in range(helpers)]
            work()
        for other in others:
            other.result()
        return [made[number] for number in range(len(items))]
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=16)
def choose_probes(count: int) -> NDArray[np.int64]:
    """Numbers of PROBES of `count` queries; drawing them takes 0.2 ms, and the batches of a run are of one size."""
    return np.random.default_rng(0).choice(count, PROBES, replace=False)


def _blocks(queries: Tensor, apart: Apart | None, size: int) -> list[tuple[Tensor, Apart | None]]:
    """Every `size` queries with their groups."""
    groups = itertools.repeat(None) if apart is None else apart.split(size)
    return list(zip(queries.split(size), groups, strict=False))


def near_pairs(groups: Tensor, best: Tensor, cut: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All (query, row) pairs that may be among the k nearest, ordered by query, at least k for each; see `_score`."""
    width = best.shape[1]
    query, reached = np.divmod(np.flatnonzero((best >= cut).numpy()), width)
    near = groups[query, :, reached] >= cut[query]
    hit, member = np.divmod(np.flatnonzero(near.numpy()), GROUP)
    return query[hit], reached[hit] + member * width


class PrunedSearch:
    """The k nearest rows by a lower bound from one narrow matrix product, and full distances where it leaves doubt.

    With V the leading directions of the bank, |V'q - V'b| <= |V| |q - b| for every query q and row b. The distances
    to k rows of low bound are an upper bound on the k-th distance; only rows whose lower bound does not exceed it
    can be neighbours, and they all get their distance in float32, as a sum of squared differences.

    Rounding is part of the proof: what enters the products is exact in bfloat16, so it makes no difference whether
    the CPU multiplies in bfloat16 (done where it is native) or float32, and the bound is widened by what the
    rounding to bfloat16 and sums of float32 in any order can lose (Higham 2002, section 3.1). Directions that fit
    badly cost time, never exactness.

    Args:
        bank: (K, D) float32 on the CPU, K >= 16, D >= 16.
        flat: exact search of the same bank, for few queries, many neighbours and data that cannot be pruned.
        num_workers: threads of a search, see `by_single_threads`.
        dtype: of the matrix products, torch.bfloat16 or torch.float32; None chooses.
    """

    name = "pruned"

    def __init__(
        self,
        bank: Tensor,
        flat: Search,
        num_workers: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._bank, self._flat, self._num_workers = bank, flat, num_workers
        self._dtype = dtype or (torch.bfloat16 if native_bfloat16() else torch.float32)
        by_single_threads(self._prepare, [bank], 1)

    def _prepare(self, bank: Tensor) -> None:
        dimension = bank.shape[1]
        directions = min(dimension // 4, MOST_DIRECTIONS)
        self._mean = bank.mean(dim=0)  # centred vectors are short, and errors grow with their length
        centred = bank - self._mean
        self._radius = centred.norm(dim=1).max()
        self._basis = principal_directions(centred, directions).bfloat16().to(self._dtype)  # (D, P)
        self._rows = self._with_norms(self._reduce(centred))  # (K + padding, P + 3)

        # |V|^2 <= 1 + |V'V - 1|_F: not quite 1 in bfloat16. The factor behind it is for the sum in the upper bound.
        basis = self._basis.double()
        deviation = torch.linalg.matrix_norm(basis.T @ basis - torch.eye(directions, dtype=basis.dtype)).item()
        self._stretch = math.sqrt(1 + deviation) * (1 + dimension * FLOAT_ROUNDOFF)
        # V'x loses its share of |x| when x is rounded, when it is summed, and when it is rounded itself; 0.1 more
        # covers centring and products of errors. The score and the norms lose their share of squared lengths.
        self._slack = 2.1 * ROUNDOFF + 2 * math.sqrt(directions) * dimension * FLOAT_ROUNDOFF
        self._squared_slack = 8 * (directions + 3) * FLOAT_ROUNDOFF

    def _reduce(self, centred: Tensor) -> Tensor:
        return (centred.bfloat16().to(self._dtype) @ self._basis).bfloat16().to(self._dtype)  # (N, P)

    def _with_norms(self, reduced: Tensor) -> Tensor:
        """Append -|b|^2 / 2 in three columns, whose sum has the digits of float32, and rows that are never near."""
        norms = reduced.double().square().sum(dim=1) / -2
        columns = []
        for _ in range(3):
            columns.append(norms.bfloat16())
            norms = norms - columns[-1]
        rows = torch.cat([reduced, torch.stack(columns, dim=1).to(self._dtype)], dim=1)
        padding = rows.new_zeros(-len(rows) % GROUP, rows.shape[1])
        padding[:, -3] = -torch.inf
        return torch.cat([rows, padding])

    def __call__(self, queries: Tensor, k: int, apart: Apart | None = None) -> Tensor:
        """See `Search`."""
        groups = itertools.repeat(None) if apart is None else Apart(apart.queries.cpu(), apart.rows.cpu()).split(CHUNK)
        chunks = queries.cpu().contiguous().split(CHUNK)
        found = [self._search(chunk, k, apart) for chunk, apart in zip(chunks, groups, strict=False)]
        return torch.cat(found).to(queries.device)

    def _search(self, queries: Tensor, k: int, apart: Apart | None) -> Tensor:
        left = len(self._bank) if apart is None else apart.left
        if len(queries) < PROBES or k > left // GROUP:
            return self._flat(queries, k, apart)
        longest = queries.norm() + self._mean.norm() + self._radius  # at least |q| + |b| for all, nan with a nan
        if not (self._stretch * longest).square().isfinite():  # nothing can be proved with nan or overflow
            return self._flat(queries, k, apart)
        numbers = choose_probes(len(queries))
        most_kept = SURVIVORS * PROBES * len(self._bank)
        if self._num_workers is None and len(queries) * len(self._rows) <= TOGETHER:
            # After the backbone torch's threads stay awake for some 9 ms, on cores that workers would have to share.
            scored = self._score((queries, apart), k)
            if len(near_pairs(*(part[numbers] for part in scored))[1]) > most_kept:
                return self._flat(queries, k, apart)
            return self._nearest(queries, k, *near_pairs(*scored))
        survivors = partial(self._survivors, k=k)
        groups = None if apart is None else Apart(apart.queries[numbers], apart.rows)
        probes = _blocks(queries[numbers], groups, PROBES // 2)  # halves, since all wait for them
        if sum(len(rows) for _, rows in by_single_threads(survivors, probes, self._num_workers)) > most_kept:
            return self._flat(queries, k, apart)
        workers = self._num_workers or torch.get_num_threads()
        most = min(max(BLOCK // len(self._rows), 64), 512)
        rounds = math.ceil(len(queries) / (most * workers))
        block = max(math.ceil(len(queries) / (rounds * workers)), 64)  # as much work for one as for another
        found = by_single_threads(survivors, _blocks(queries, apart, block), self._num_workers)
        query = np.concatenate([i * block + pairs[0] for i, pairs in enumerate(found)])
        return self._nearest(queries, k, query, np.concatenate([pairs[1] for pairs in found]))

    def _survivors(self, block: tuple[Tensor, Apart | None], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The `near_pairs` of some queries."""
        return near_pairs(*self._score(block, k))

    def _score(self, block: tuple[Tensor, Apart | None], k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The scores of all rows in groups (Q, GROUP, width), the best of each, and the least of a near row (Q, 1)."""
        queries, apart = block
        centred = queries - self._mean
        reach = centred.norm(dim=1) + self._radius  # at least |q| + |b| for every b
        reduced = self._reduce(centred)
        # The score q'b - |b|^2 / 2 falls as |q - b| grows; row g + i * width is member i of group g.
        scores = torch.nn.functional.pad(reduced, (0, 3), value=1.0) @ self._rows.T
        if apart is not None:
            for group in apart.queries.unique():  # few in a block
                scores[(apart.queries == group).nonzero(), (apart.rows == group).nonzero()[:, 0]] = -torch.inf
        groups = scores.view(len(queries), GROUP, -1)
        best = groups.amax(dim=1)  # (Q, width)
        width = best.shape[1]

        group = best.topk(k, dim=1).indices
        row = groups[torch.arange(len(queries))[:, None], :, group].argmax(dim=2) * width + group  # (Q, k)
        rows = self._bank.index_select(0, row.flatten()).view(*row.shape, -1)  # in half the time of `[row]`
        upper = (queries[:, None] - rows).square().sum(dim=2).amax(dim=1)
        limit = (self._stretch * upper.sqrt() + self._slack * reach).square()
        limit += self._squared_slack * reach.square() + UNDERFLOW
        cut = (reduced.float().square().sum(dim=1) - limit) / 2  # the score of a row at that distance
        cut = (cut - cut.abs() * torch.finfo(self._dtype).eps).to(self._dtype)[:, None]  # for rounded scores
        return groups, best, cut

    def _nearest(self, queries: Tensor, k: int, query: NDArray[np.int64], row: NDArray[np.int64]) -> Tensor:
        """The k least distances of each query among its pairs."""
        import faiss

        exact = np.empty(len(query), dtype=np.float32)
        vectors = faiss.swig_ptr(queries.numpy()), faiss.swig_ptr(query), faiss.swig_ptr(self._bank.numpy())
        faiss.pairwise_indexed_L2sqr(queries.shape[1], len(query), *vectors, faiss.swig_ptr(row), faiss.swig_ptr(exact))
        numbers = np.arange(len(queries))
        first = np.searchsorted(query, numbers)
        nearest = []
        for _ in range(k):
            nearest.append(np.minimum.reduceat(exact, first))
            ties = np.flatnonzero(exact == nearest[-1][query])
            exact[ties[np.searchsorted(query[ties], numbers)]] = np.inf  # one of them is taken, no more
        return torch.from_numpy(np.stack(nearest, axis=1))
