"""The training loop of the flows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from patchcore.methods.fastflow.config import DENSITIES, FastFlowConfig
from patchcore.methods.fastflow.model import FastFlowModel
from patchcore.methods.fastflow.record import TrainingRecord
from patchcore.methods.fastflow.samples import Samples
from patchcore.system.timing import StageTimer, progress_bar
from patchcore.types import PatchCoreError


def train(
    model: FastFlowModel,
    samples: Samples,
    config: FastFlowConfig,
    *,
    per_epoch: int,
    images_per_epoch: int,
    seed: int,
    device: torch.device,
    record: TrainingRecord,
    timer: StageTimer,
) -> None:
    """Fit the flows to good samples by maximum likelihood; `model` ends with the weights of the last epoch.

    Every random choice follows from `seed` and the epoch, so that a training that goes on from a checkpoint ends with
    the weights of one that was never interrupted.

    Args:
        per_epoch: samples drawn, without repetition, for an epoch.
        images_per_epoch: how many images those are, for the speed that is told; of tiles there are more than images.
        record: knows where a former training stopped; told of every epoch.

    Raises:
        PatchCoreError: the loss is not finite any more.
    """
    optimizer = torch.optim.Adam(
        model.flows.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    done = record.restore(model, optimizer, device)
    steps = math.ceil(per_epoch / config.train_batch_size)
    model.train()
    with progress_bar("flow", config.epochs, "epoch") as bar:
        bar.update(done)
        begin = time.perf_counter()
        for epoch in range(done, config.epochs):
            start = time.perf_counter()
            choices = torch.Generator().manual_seed((seed + epoch) % 2**63)
            noise = torch.Generator(device).manual_seed((seed + epoch) % 2**63)
            total = torch.zeros((), device=device)
            for step, indices in enumerate(_batches(len(samples), per_epoch, config.train_batch_size, choices)):
                rate = learning_rate(config, (epoch * steps + step) / (config.epochs * steps))
                maps = samples.maps(indices, choices)
                with timer("flow"):
                    loss = _step(model, maps, optimizer, rate, config, noise)
                total += loss * len(indices)
            mean_loss = float(total) / per_epoch  # the one time in an epoch that the device is waited for
            now = time.perf_counter()
            if not math.isfinite(mean_loss):
                raise PatchCoreError(
                    f"the training diverged in epoch {epoch + 1} of {config.epochs}: the loss is {mean_loss} at a"
                    f" learning rate of {rate:.2g}; lower --learning_rate or --gradient_clip"
                )
            row: dict[str, float] = {
                "epoch": epoch + 1,
                "loss": mean_loss,
                "learning_rate": rate,
                "images_per_second": images_per_epoch / (now - start),
                "seconds_left": (now - begin) / (epoch + 1 - done) * (config.epochs - epoch - 1),
            }
            record.epoch(row, model, optimizer)
            bar.set_postfix_str(
                f"loss {mean_loss:.3f} nats/dim, rate {rate:.1e}, {row['images_per_second']:.0f} images/s",
                refresh=False,
            )
            bar.update()
    model.eval()


def learning_rate(config: FastFlowConfig, progress: float) -> float:
    """The learning rate after a share of all steps: it rises linearly over `config.warmup`, then falls as a cosine."""
    if progress < config.warmup:
        # The first step must move too, and one step is the least that a warm-up can be finished in.
        return config.learning_rate * max(progress / config.warmup, 0.01)
    rest = (progress - config.warmup) / (1 - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))


def _batches(count: int, per_epoch: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    return iter(torch.randperm(count, generator=generator)[:per_epoch].split(size))


def _step(
    model: FastFlowModel,
    maps: list[Tensor],
    optimizer: torch.optim.Optimizer,
    rate: float,
    config: FastFlowConfig,
    noise: torch.Generator,
) -> Tensor:
    """One step of Adam; returns the negative log-likelihood in nats per dimension, the mean over the scales."""
    full = DENSITIES.index("full")
    losses = [-values[full].mean() for values in model(maps, config.noise, noise)]
    optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()  # no weights between scales: they share no parameter
    for flow in model.flows:
        nn.utils.clip_grad_norm_(flow.parameters(), config.gradient_clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return torch.stack(losses).mean().detach()
