"""``check_objective``: losses that are finite, reproducible, the same in both layouts, and that train the student."""

from __future__ import annotations

from typing import Any

import torch

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch
from fewstep.core.objective import Objective, Phase
from fewstep.plugins.registry import registry
from fewstep.testing.tiny import tiny_batch
from fewstep.testing.trial import Bench, Trial

EXACT, DIFFERENCE = 1e-9, 1e-4  # relative; float64 rounding, and a central difference
WIDTHS = (1e-4, 1e-6)  # half-widths of the difference: the narrow one for networks that look at 1000 t


def check_objective(
    objective_cls: type[Objective[Any]],
    config: Strict | None = None,
    *,
    backbone: Backbone | None = None,
    batch: Batch | None = None,
) -> None:
    """Hold an objective against what the engine relies on, in float64 on the kit's own tiny network.

    Checked in every phase: terms are finite scalars that depend on the trained networks; gradients reach each of them
    and never the teacher; nothing is changed in place; all draws come from ``step``; dense equals packed; exact
    tangents agree with finite differences; ``needs`` is honest; the contract names a registered sampler.

    Args:
        config: of the objective; its defaults without.
        backbone, batch: for an objective that the kit's network cannot serve; layouts are then not compared.

    Raises:
        AssertionError: with a sentence that names the objective and what is wrong.
    """
    bench = Bench(objective_cls, config, backbone, batch)
    contract = bench.objective.contract()
    samplers = registry().names("sampler")
    bench.claim(contract.sampler in samplers, f"its sampler {contract.sampler!r} is none of {', '.join(samplers)}")
    used: set[str] = set()
    for index, phase in bench.phases():
        trial = bench.run(index, phase)
        used |= trial.used
        _trains(bench, phase, trial)
        again = bench.run(index, phase, outside=1)
        same = torch.equal(trial.flat, again.flat)
        bench.claim(same, f"{phase.loss}() differs for equal seeds: draw through step.randn_like and step.times alone")
        if "jvp" in trial.used:
            _tangents(bench, index, phase, trial)
        if backbone is None and batch is None:
            _layouts(bench, index, phase)
    undeclared = sorted(used - bench.needs)
    bench.claim(not undeclared, f"it uses {', '.join(undeclared)} without a word in needs")


def _trains(bench: Bench, phase: Phase, trial: Trial) -> None:
    for name, gradient in trial.gradients.items():
        bench.claim(bool(gradient.isfinite().all()), f"{phase.loss}(): the gradient of {name} is not finite")
        bench.claim(bool(gradient.any()), f"{phase.loss}() does not depend on {name}, which its phase trains")


def _tangents(bench: Bench, index: int, phase: Phase, exact: Trial) -> None:
    twice = bench.run(index, phase, mode="two-pass")
    bench.claim(_close(exact, twice, EXACT), f"{phase.loss}(): one-pass and two-pass tangents disagree")
    rough = (bench.run(index, phase, mode="finite-difference", width=width) for width in WIDTHS)
    text = "exact tangents and finite differences disagree: the direction, or a function that ignores its arguments"
    bench.claim(any(_close(exact, one, DIFFERENCE) for one in rough), f"{phase.loss}(): {text}")


def _layouts(bench: Bench, index: int, phase: Phase) -> None:
    dense, packed = (bench.run(index, phase, batch=tiny_batch(packed=p)) for p in (False, True))
    text = "dense and packed disagree: reduce and broadcast through batch.layout alone"
    bench.claim(_close(dense, packed, EXACT), f"{phase.loss}(): {text}")
    ragged = bench.run(index, phase, batch=tiny_batch((2, 5, 1), packed=True))
    bench.claim(bool(ragged.flat.isfinite().all()), f"{phase.loss}(): not finite on samples of unequal length")


def _close(a: Trial, b: Trial, tolerance: float) -> bool:
    return bool((a.flat - b.flat).norm() <= tolerance * (a.flat.norm() + 1e-12))
