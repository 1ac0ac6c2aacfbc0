"""One entrant through all stages: sample, decode, sample on what was decoded, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.bench.drawing import clock, draw
from fewstep.bench.entrants import Entrant, Stage
from fewstep.bench.noise import noise_of
from fewstep.core.batch import Batch
from fewstep.core.layout import Layout, Packed
from fewstep.errors import FewstepError


@dataclass(frozen=True)
class Outcome:
    """Objects of the last stage; of all stages NFE a sample, the largest share of samples that are not finite, and
    seconds a sample by part: ``seconds_flow``, ``seconds_decode``, of a named stage ``seconds_flow_NAME``."""

    objects: Any
    nfe: float
    broken: float
    seconds: dict[str, float]


def through(
    stages: Sequence[Stage], entrant: Entrant, prompts: Batch, steps: int, seed: int, device: torch.device
) -> Outcome:
    """What ``entrant`` makes of the first stage's prompts, ``steps`` steps in each stage."""
    batch, seconds, nfe, broken, objects = prompts, {}, 0.0, 0.0, None
    for stage, one, following in zip(stages, entrant.chain, [*stages[1:], None], strict=True):
        drawn = draw(one, batch, noise_of(seed, batch), steps, seed, device)
        began, layout = clock(device), batch.layout
        objects = stage.suite.decode(drawn.x, layout)
        if following is not None:
            batch = prompts_on(stage.suite.following(objects), following.suite.prompts(layout.batch_size))
        suffix = f"_{stage.name}" if stage.name else ""
        seconds[f"seconds_flow{suffix}"] = drawn.seconds
        seconds[f"seconds_decode{suffix}"] = (clock(device) - began) / layout.batch_size
        nfe, broken = nfe + drawn.nfe, max(broken, drawn.broken)
    return Outcome(objects, nfe, broken, seconds)


def prompts_on(layout: Layout, prompts: Batch) -> Batch:
    """These prompts on other rows: their conditions, and an ``x0`` of zeros."""
    rows = layout.rows if isinstance(layout, Packed) else layout.batch_size
    return Batch(prompts.x0.new_zeros(rows, *prompts.x0.shape[1:]), layout, prompts.cond)


def check_alike(batches: Sequence[Batch]) -> None:
    """Refuse stages whose prompts are not the same objects, as far as their conditions tell.

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
