"""Drawing samples in chunks, with their evaluations counted and their time taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.bench.entrants import Entrant
from fewstep.core.batch import Batch
from fewstep.core.layout import Layout, Packed
from fewstep.core.objective import Step
from fewstep.engine.device import to_device

CHUNK, ELEMENTS = 64, 2**18  # samples at a time: at least 64, more where they are small
ROWS = 2**15  # of samples of unequal length at a time, at least one sample


@dataclass(frozen=True)
class Drawn:
    """Samples like the prompts' ``x0``, on the CPU; NFE a sample; seconds a sample; the share that is not finite."""

    x: Tensor
    nfe: float
    seconds: float
    broken: float


@dataclass
class Counter:
    """Evaluations of one network, counted in samples."""

    samples: int = 0


@contextmanager
def counting(network: nn.Module) -> Iterator[Counter]:
    """Count what ``network`` is asked while the block runs; guidance in two calls or in one large batch is the same."""
    counter = Counter()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layout: Layout = kwargs["layout"] if "layout" in kwargs else args[3]
        counter.samples += layout.batch_size

    handle = network.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield counter
    finally:
        handle.remove()


def chunk_of(prompts: Batch) -> int:
    """Samples of a chunk, a function of the prompts alone so that all methods have the same chunks."""
    return max(CHUNK, ELEMENTS * prompts.layout.batch_size // prompts.x0.numel())


def chunks(prompts: Batch) -> list[Tensor]:
    """Indices of each chunk's samples; samples of unequal length share a chunk while their rows fit into ``ROWS``."""
    layout = prompts.layout
    if not isinstance(layout, Packed):
        return list(torch.arange(layout.batch_size).split(chunk_of(prompts)))
    found: list[list[int]] = []
    room = 0
    for sample, length in enumerate(layout.lengths_list):
        if not found or length > room:
            found.append([])
            room = ROWS
        found[-1].append(sample)
        room -= length
    return [torch.tensor(chunk) for chunk in found]


def draw(entrant: Entrant, prompts: Batch, noise: Tensor, steps: int, seed: int, device: torch.device) -> Drawn:
    """Samples of all prompts, chunk by chunk. Noise that a sampler adds on its way is one stream a (seed, chunk)."""
    layout, parts, seconds = prompts.layout, [], 0.0
    with counting(entrant.network) as counter, torch.inference_mode():
        for index, rows in enumerate(chunks(prompts)):
            batch = to_device(prompts.select(rows), device)
            start = layout.select(noise, rows)[0].to(device)
            step = Step(index=index, interpolant=entrant.network.interpolant, seed=seed, device=device)
            began = clock(device)
            grid = entrant.contract.grid(steps)
            if start.numel():  # structures may have come out empty
                start = entrant.sampler(entrant.field, start, batch.cond, batch.layout, grid, step)
            seconds += clock(device) - began
            parts.append(start.cpu())
    x, count = torch.cat(parts), layout.batch_size
    finite = x.isfinite()
    broken = float((layout.sum((~finite).float()) > 0).float().mean())
    return Drawn(torch.where(finite, x, 0.0), counter.samples / count, seconds / count, broken)


def warm_up(entrant: Entrant, prompts: Batch, device: torch.device) -> None:
    """One evaluation of two samples, so that the first time taken is not that of allocating and choosing kernels."""
    rows = torch.arange(min(2, prompts.layout.batch_size))
    batch = to_device(prompts.select(rows), device)
    with torch.inference_mode():
        t_B = torch.ones(len(rows), dtype=torch.float64, device=device)
        two_time = {"s_B": torch.zeros_like(t_B)} if entrant.contract.two_time else {}
        entrant.network(batch.x0, t_B, batch.cond, batch.layout, **two_time)


def clock(device: torch.device) -> float:
    """Seconds, with the device's queue empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
