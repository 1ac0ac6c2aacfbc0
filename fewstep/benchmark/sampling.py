"""Sampling all prompts by one network, in chunks, counting evaluations and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.benchmark.entrants import Model
from fewstep.core.batch import Batch
from fewstep.core.layout import Layout, Packed
from fewstep.core.objective import Step
from fewstep.errors import FewstepError

CHUNK, ELEMENTS = 64, 2**18  # smallest number of samples in a chunk; elements in a chunk if samples are small
ROWS = 2**15  # rows in a chunk of samples of unequal length; at least one sample
Tick = Callable[[float], None]  # called with the number of evaluations begun


def sample(
    model: Model,
    prompts: Batch,
    noise: Tensor,
    steps: int,
    seed: int,
    device: torch.device,
    tick: Tick = lambda evaluations: None,
) -> tuple[Tensor, float, float]:
    """Sample all prompts chunk by chunk; returns samples like ``noise``, on the CPU, and evaluations and seconds per
    sample.

    Noise that a sampler adds depends only on (seed, chunk).
    """
    layout, parts, seconds = prompts.layout, [], 0.0
    with counted(model.network, tick) as sizes, torch.inference_mode():
        for index, rows in enumerate(chunks(prompts)):
            batch = prompts.select(rows).to(device)
            x = layout.select(noise, rows)[0].to(device)
            step = Step(index=index, interpolant=model.network.interpolant, seed=seed, device=device)
            cond = model.contract.told(batch.cond, x, batch.layout)
            began = clock(device)
            if x.numel():  # the stage before may have decoded empty structures
                x = model.sampler(model.field, x, cond, batch.layout, model.contract.grid(steps), step)
            seconds += clock(device) - began
            parts.append(x.cpu())
    return torch.cat(parts), sum(sizes) / layout.batch_size, seconds / layout.batch_size


@contextmanager
def counted(network: nn.Module, tick: Tick) -> Iterator[list[int]]:
    """Collect the batch size of every call of a network, and pass it to ``tick``."""
    sizes: list[int] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layout: Layout = kwargs["layout"] if "layout" in kwargs else args[3]
        sizes.append(layout.batch_size)
        tick(layout.batch_size)

    handle = network.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


def chunks(prompts: Batch) -> list[Tensor]:
    """Sample indices of each chunk. They depend only on the prompts, so all methods have the same chunks.

    Samples of unequal length share a chunk as long as their rows fit into ``ROWS``.
    """
    layout = prompts.layout
    if not isinstance(layout, Packed):
        size = max(CHUNK, ELEMENTS * layout.batch_size // prompts.x0.numel())
        return list(torch.arange(layout.batch_size).split(size))
    filled: list[list[int]] = []
    room = 0
    for index, length in enumerate(layout.lengths_list):
        if not filled or length > room:
            filled.append([])
            room = ROWS
        filled[-1].append(index)
        room -= length
    return [torch.tensor(chunk) for chunk in filled]


def prompts_on(layout: Layout, prompts: Batch) -> Batch:
    """The conditions of ``prompts`` in another layout, with an ``x0`` of zeros."""
    rows = layout.rows if isinstance(layout, Packed) else layout.batch_size
    return Batch(prompts.x0.new_zeros(rows, *prompts.x0.shape[1:]), layout, prompts.cond)


def check_alike(batches: Sequence[Batch]) -> None:
    """Refuse stages whose prompts are not of the same objects, as far as their conditions tell.

    Raises:
        FewstepError: naming what differs.
    """
    first = batches[0]
    for other in batches[1:]:
        sizes = first.layout.batch_size, other.layout.batch_size
        if sizes[0] != sizes[1]:
            raise FewstepError(f"stages: {sizes[0]} and {sizes[1]} held-out samples; accepted: the same in each stage")
        a, b = first.cond.tokens, other.cond.tokens
        if a is not None and b is not None and a.shape == b.shape and not torch.equal(a, b):
            raise FewstepError("stages: their held-out samples have other conditions; accepted: the same in each stage")


def warm_up(model: Model, prompts: Batch, device: torch.device) -> None:
    """Sample two prompts in one step: the first call allocates memory and chooses kernels, and must not be timed."""
    two = prompts.select(torch.arange(min(2, prompts.layout.batch_size)))
    sample(model, two, torch.zeros_like(two.x0), 1, 0, device)


def clock(device: torch.device) -> float:
    """The time in seconds, read after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
