"""Every objective gives on a ragged batch what it gives on its samples one by one, loss and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from closed_forms import RING, Given, draws, exact_nets, gradients, largest, random_student, total
from fewstep_consistency.cm import Consistency, PhasedConsistency
from fewstep_consistency.config import ConsistencyConfig, PhasedConfig
from fewstep_mdt.config import MDTConfig, VMConfig
from fewstep_mdt.vd import MDT, VelocityDistillation
from fewstep_mdt.vm import VelocityMatching
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.derivatives import Mode, Tangents
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import Objective, Step, means

LENGTHS = [3, 1, 7, 2, 5]
Make = Callable[[str], Objective[Any]]


def vm(**keys: Any) -> Make:
    return lambda reduction: VelocityMatching(VMConfig(reduction=reduction, **keys))


def vd(**keys: Any) -> Make:
    return lambda reduction: VelocityDistillation(MDTConfig(reduction=reduction, **keys))


def mdt(**keys: Any) -> Make:
    return lambda reduction: MDT(MDTConfig(reduction=reduction, **keys))


def cm(**keys: Any) -> Make:
    return lambda reduction: Consistency(ConsistencyConfig(reduction=reduction, **keys))


def pcm(**keys: Any) -> Make:
    return lambda reduction: PhasedConsistency(PhasedConfig(reduction=reduction, **keys))


OBJECTIVES: dict[str, Make] = {
    f"{name}-{kind}-{norm}": make(kind=kind, d_norm=norm)
    for name, make in {"vm": vm, "vd": vd, "mdt": mdt}.items()
    for kind in ("discrete", "continuous")
    for norm in ("none", "sample", "element")
}
OBJECTIVES |= {
    "vm-phases": vm(multiphase=3, rescale_t=2.0),
    "vd-factor": vd(vd_factor=True),
    "mdt-cm": mdt(kind="cm", multiphase=4),
    "mdt-data": mdt(velocity="data"),
    "cm-l2": cm(loss="l2", weight="velocity"),
    "cm-huber": cm(weight="interval"),
    "cm-continuous": cm(kind="continuous", loss="l2"),
    "pcm-l2": pcm(loss="l2"),
    "pcm-huber": pcm(phases=2),
}


def ragged(seed: int = 0) -> tuple[Batch, dict[str, Tensor]]:
    """Sets of points of several sizes, each with a class."""
    g = torch.Generator().manual_seed(seed)
    layout = Packed.of_lengths(LENGTHS)
    x0 = torch.randn(sum(LENGTHS), 2, generator=g, dtype=torch.float64)
    tokens = torch.nn.functional.one_hot(torch.randint(8, (len(LENGTHS),), generator=g), 8).double()
    return Batch(x0, layout, Condition(tokens)), draws(x0, len(LENGTHS), seed)


def alone(i: int, batch: Batch, given: dict[str, Tensor]) -> tuple[Batch, Step]:
    """Sample i as a dense batch of one set [1, P, 2]."""
    rows = torch.tensor([i])
    points = {name: batch.layout.select(given[name], rows)[0][None] for name in ("noise", "noise_fake")}
    x0, _ = batch.layout.select(batch.x0, rows)
    return Batch(x0[None], Dense(1), batch.cond.select(rows)), Given(points | {"t": given["t"][rows]})


@pytest.mark.parametrize("reduction", ["element", "sample"])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_packed_is_dense_sample_by_sample(name: str, reduction: str) -> None:
    objective, student = OBJECTIVES[name](reduction), random_student(RING)
    nets, (batch, given) = exact_nets(student, RING), ragged()
    shares = torch.tensor(LENGTHS).double() / sum(LENGTHS)
    shares = shares if reduction == "element" else torch.full_like(shares, 1 / len(LENGTHS))
    losses = [means(objective.loss(*_with(nets, *alone(i, batch, given)))) for i in range(len(LENGTHS))]
    expected = {key: sum(w * one[key] for w, one in zip(shares, losses, strict=True)) for key in losses[0]}
    packed = means(objective.loss(batch, nets, Given(given)))
    for key, value in expected.items():
        assert abs(float((packed[key] - value).detach())) < 1e-12 * max(1.0, abs(float(packed[key].detach())))
    ours, theirs = gradients(packed, student), gradients(expected, student)
    scale = max(float(g.abs().max()) for g in theirs)
    assert scale > 1e-6
    assert largest(ours, theirs) < 1e-12 * max(1.0, scale)


def _with(nets: Any, batch: Batch, step: Step) -> tuple[Batch, Any, Step]:
    return batch, nets, step


@pytest.mark.parametrize("name", ["mdt-discrete-sample", "mdt-continuous-element", "cm-huber", "pcm-l2"])
def test_sets_of_one_size_are_the_same_either_way(name: str) -> None:
    objective, student = OBJECTIVES[name]("element"), random_student(RING)
    nets, g = exact_nets(student, RING), torch.Generator().manual_seed(0)
    x0 = torch.randn(4, 3, 2, generator=g, dtype=torch.float64)
    given = draws(x0, 4)
    flat = {k: v.flatten(0, 1) if v.dim() == 3 else v for k, v in given.items()}
    cond = Condition(torch.eye(8, dtype=torch.float64)[:4])
    dense = means(objective.loss(Batch(x0, Dense(4), cond), nets, Given(given)))
    packed = means(objective.loss(Batch(x0.flatten(0, 1), Packed.of_lengths([3] * 4), cond), nets, Given(flat)))
    assert largest(list(dense.values()), list(packed.values())) < 1e-12
    assert largest(gradients(dense, student), gradients(packed, student)) < 1e-12


def test_order_of_samples_does_not_matter() -> None:
    objective, student = OBJECTIVES["mdt-continuous-sample"]("sample"), random_student(RING)
    nets, (batch, given) = exact_nets(student, RING), ragged()
    order = torch.tensor([4, 2, 0, 1, 3])
    moved = {k: given[k][order] if k == "t" else batch.layout.select(given[k], order)[0] for k in given}
    one = means(objective.loss(batch, nets, Given(given)))
    two = means(objective.loss(batch.select(order), nets, Given(moved)))
    assert largest(gradients(one, student), gradients(two, student)) < 1e-12


@pytest.mark.parametrize("name", ["vm-continuous-none", "mdt-continuous-element", "cm-continuous"])
def test_the_three_ways_to_differentiate_agree(name: str) -> None:
    objective, student = OBJECTIVES[name]("element"), random_student(RING)
    nets, (batch, given) = exact_nets(student, RING), ragged()

    def found(mode: Mode, step: float = 1e-4) -> tuple[float, list[Tensor]]:
        losses = means(objective.loss(batch, nets, Given(given, Tangents(mode, step))))
        return float(total(losses).detach()), gradients(losses, student)

    exact, two_pass = found("one-pass"), found("two-pass")
    assert abs(exact[0] - two_pass[0]) < 1e-12 * exact[0]
    assert largest(exact[1], two_pass[1]) < 1e-12 * max(1.0, exact[0])
    errors = []
    for step in (2e-3, 1e-3):
        central = found("finite-difference", step)
        errors.append((abs(central[0] - exact[0]), largest(central[1], exact[1])))
    for rough, fine in zip(*errors, strict=True):
        assert 3.5 < rough / fine < 4.5  # second order
    assert errors[1][0] < 1e-2 * exact[0]


@pytest.mark.parametrize("name", ["vm", "mdt"])
def test_discrete_approaches_continuous(name: str) -> None:
    student, (batch, given) = random_student(RING), ragged()
    nets, make = exact_nets(student, RING), {"vm": vm, "mdt": mdt}[name]

    def gradient(low: float, **keys: Any) -> list[Tensor]:
        same_times = {"t": (0.2 + 0.7 * given["t"] - low) / (1 - low)}
        return gradients(make(d_norm="none", **keys)("element").loss(batch, nets, Given(given | same_times)), student)

    limit = gradient(0.0, kind="continuous")
    errors = [largest(gradient(d, interval=d), limit) for d in (2e-3, 1e-3, 5e-4)]
    assert 1.7 < errors[0] / errors[1] < 2.3
    assert 1.8 < errors[1] / errors[2] < 2.2


def test_an_empty_sample_changes_no_gradient_by_element() -> None:
    student, (batch, given) = random_student(RING), ragged()
    nets = exact_nets(student, RING)
    objective = OBJECTIVES["mdt-discrete-element"]("element")
    expected = gradients(objective.loss(batch, nets, Given(given)), student)
    layout = Packed.of_lengths([*LENGTHS, 0])
    assert isinstance(batch.cond.tokens, Tensor)
    cond = Condition(torch.cat([batch.cond.tokens, batch.cond.tokens[:1]]))
    more = given | {"t": torch.cat([given["t"], given["t"][:1]])}
    ours = gradients(objective.loss(Batch(batch.x0, layout, cond), nets, Given(more)), student)
    assert largest(ours, expected) < 1e-12
