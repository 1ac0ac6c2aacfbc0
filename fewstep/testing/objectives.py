"""``check_objective``: losses that are finite, reproducible, the same in both layouts, and that train the student."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch
from fewstep.core.objective import Objective, Phase
from fewstep.testing.tiny import near, tiny_batch
from fewstep.testing.trial import Bench, Trial

EXACT, DIFFERENCE = 1e-9, 1e-4  # relative; float64 rounding, and a central difference
WIDTHS = (1e-4, 1e-6)  # half-widths of the difference: the narrow one for networks that look at 1000 t
PHASES = 32  # iterations that are searched for distinct phases


def check_objective(
    objective_cls: type[Objective[Any]],
    config: Strict | None = None,
    *,
    backbone: Backbone | None = None,
    batch: Batch | None = None,
    coupled: bool = False,
) -> None:
    """Check what the engine relies on in an objective, in float64 on the kit's own tiny network.

    Checked at the first iteration of every phase that occurs in 32 iterations: each term is finite and depends on the
    trained networks; gradients reach each of them and never the teacher; nothing is changed in place; all draws come
    from ``step``; dense and packed batches give the same; samples do not influence one another; the loss is finite
    under bfloat16 autocast and where a sample is empty; exact tangents agree with finite differences; target times are
    not above times; everything it uses is in ``needs``; the contract names a registered sampler that fits ``needs``. To
    check a term that starts later, pass a config with which it starts at once.

    Args:
        objective_cls: the class.
        config: of the objective; by default its ``Config`` with default values.
        backbone, batch: for an objective that the kit's network cannot serve; layouts are then not compared.
        coupled: the loss compares samples with one another on purpose, as a kernel distance does.

    Raises:
        AssertionError: with a sentence that names the objective and what is wrong.
    """
    bench = Bench(objective_cls, config, backbone, batch)
    bench.sampler_fits()
    first: dict[Phase, int] = {}
    for index in range(PHASES):
        phase = bench.objective.phase(index)
        first.setdefault(phase, index)
        same = phase == bench.objective.phase(index)
        bench.claim(same, f"phase({index}) differs from call to call: let it depend on the iteration alone")
    used: set[str] = set()
    for phase, index in first.items():
        trial = bench.run(index, phase)
        used |= trial.used
        for name, gradient in trial.gradients.items():
            bench.claim(bool(gradient.isfinite().all()), f"{phase.loss}(): the gradient of {name} is not finite")
            bench.claim(bool(gradient.any()), f"{phase.loss}() does not depend on {name}, which its phase trains")
        same = torch.equal(trial.flat, bench.run(index, phase, outside=1).flat)
        bench.claim(same, f"{phase.loss}() differs for equal seeds: draw through step.randn_like and step.times alone")
        if "jvp" in trial.used:
            _tangents(bench, index, phase, trial)
        if not coupled:
            _apart(bench, index, phase)
        bench.run(index, phase, bfloat16=True)
        if backbone is None and batch is None:
            _layouts(bench, index, phase)
    undeclared = sorted(used - bench.needs)
    bench.claim(not undeclared, f"it uses {', '.join(undeclared)} and does not declare that in needs")


def _tangents(bench: Bench, index: int, phase: Phase, exact: Trial) -> None:
    twice = bench.run(index, phase, mode="two-pass")
    bench.claim(near(twice.flat, exact.flat, EXACT), f"{phase.loss}(): one-pass and two-pass tangents disagree")
    rough = (bench.run(index, phase, mode="finite-difference", width=width) for width in WIDTHS)
    text = "exact tangents and finite differences disagree: the direction, or a function that ignores its arguments"
    bench.claim(any(near(trial.flat, exact.flat, DIFFERENCE) for trial in rough), f"{phase.loss}(): {text}")


def _apart(bench: Bench, index: int, phase: Phase) -> None:
    """A sum over samples has no mixed second difference: changing one adds the same whatever the others are."""
    batch = bench.batch.cast(torch.float64)
    last_B = torch.zeros(batch.layout.batch_size).double()
    first_B, last_B[-1] = last_B.clone(), 1
    first_B[0] = 1

    def changed(first: float, last: float) -> torch.Tensor:
        weight = batch.layout.expand(first * first_B + last * last_B, batch.x0)
        return bench.run(index, phase, batch=replace(batch, x0=batch.x0 + weight * batch.x0.cos())).flat

    first_changed, last_changed, both = changed(1, 0), changed(0, 1), changed(1, 1)
    text = "samples influence one another (a norm over the batch?): reduce through batch.layout, or pass coupled=True"
    bench.claim(near(both - first_changed, last_changed - changed(0, 0), EXACT), f"{phase.loss}(): {text}")


def _layouts(bench: Bench, index: int, phase: Phase) -> None:
    dense, packed = (bench.run(index, phase, batch=tiny_batch(packed=p)) for p in (False, True))
    text = "dense and packed disagree: reduce and broadcast through batch.layout alone"
    bench.claim(near(packed.flat, dense.flat, EXACT), f"{phase.loss}(): {text}")
    ragged = bench.run(index, phase, batch=tiny_batch((2, 5, 0, 1), packed=True))
    text = "the gradient is not finite on samples of unequal length, one of them empty"
    bench.claim(bool(ragged.flat.isfinite().all()), f"{phase.loss}(): {text}")
