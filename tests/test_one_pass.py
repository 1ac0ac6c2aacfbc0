"""Classifier-free guidance by one call on twice the samples: the numbers of two calls, and when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.conditioning.several import several_condition, several_field
from fewstep_trellis.models import SparseStructureFlowModel
from fewstep_trellis2.latents import ShapeStage
from fewstep_trellis2.models import SLatFlowModel as SLatFlowModel2
from fewstep_trellis2.models import SparseStructureFlowModel as SparseStructureFlowModel2
from fewstep_trellis2.structure import StructureStage
from slat_helpers import randomised, slat_batch, slat_flow
from test_trellis2_flows import SHAPE, STRUCTURE, built, randn
from torch import Tensor

from fewstep.benchmark.sampling import counted
from fewstep.core import guidance
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import FEW, Guidance, VelocityField, one_pass, sampling
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.core.times import step_grid
from fewstep.engine.budget import Budget
from fewstep.testing import TinyBackbone, tiny_batch

BOTH = frozenset({"two_time", "guidance_input"})


@pytest.fixture(params=[True, False], ids=["one pass", "two calls"])
def once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As on a GPU, and as elsewhere."""
    monkeypatch.setattr(guidance, "one_pass", lambda x: request.param)
    return bool(request.param)


@dataclass
class Counted:
    """A field that notes the layouts of its calls."""

    field: VelocityField
    layouts: list[Layout]

    def __call__(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, **more: Any) -> Tensor:
        self.layouts.append(layout)
        return self.field(x, t_B, cond, layout, **more)


def structure() -> tuple[Backbone, Batch]:
    model = SparseStructureFlowModel(4, 2, 16, 6, 2, 2, num_heads=2, mlp_ratio=2, qk_rms_norm=True)
    flow = StructureFlow(randomised(model, 0)).student(BOTH).double()
    return flow, Batch(randn(3, 2, 4, 4, 4), Dense(3), Condition(randn(3, 5, 6)))


def structure2() -> tuple[Backbone, Batch]:
    flow = StructureStage(built(SparseStructureFlowModel2, STRUCTURE)).student(BOTH).double()
    return flow, Batch(randn(2, 2, 3, 3, 3), Dense(2), Condition(randn(2, 4, 6)))


def shape2() -> tuple[Backbone, Batch]:
    flow = ShapeStage(built(SLatFlowModel2, SHAPE | {"in_channels": 3})).student(BOTH).double()
    layout = Packed.of_lengths([5, 0, 9], torch.randint(0, 30, (14, 3)))
    return flow, Batch(randn(14, 3), layout, Condition(randn(3, 4, 6)))


FIELDS: dict[str, Callable[[], tuple[Backbone, Batch]]] = {
    "tiny, dense": lambda: (TinyBackbone().double(), tiny_batch()),
    "tiny, ragged": lambda: (TinyBackbone().double(), tiny_batch((5, 0, 3), packed=True)),
    "trellis": structure,
    "trellis-slat": lambda: (slat_flow().student(BOTH).double(), slat_batch()),
    "trellis2": structure2,
    "trellis2-shape": shape2,
}


@torch.no_grad()
def two_calls(rule: Guidance, flow: Backbone, x: Tensor, t_B: Tensor, one: Batch, s_B: Tensor | None) -> Tensor:
    """By definition, sample by sample outside the interval: the conditional one alone."""
    c, u = (flow(x, t_B, cond, one.layout, s_B=s_B) for cond in (one.cond, one.cond.negative()))
    return rule.rescaled(rule.guided(c, u, t_B, one.layout), c, x, t_B, one.layout, flow.interpolant)


@pytest.mark.parametrize("two_time", [False, True])
@pytest.mark.parametrize("negative", [False, True], ids=["zeros", "negative tokens"])
@pytest.mark.parametrize("name", FIELDS)
def test_the_numbers_of_two_calls(name: str, negative: bool, two_time: bool, once: bool) -> None:
    """Of samples inside and outside the interval, with and without what a student may take beside its time."""
    flow, batch = FIELDS[name]()
    if isinstance(flow, TinyBackbone):
        flow.take_strength()
    randomised(flow, 3)
    size, tokens = batch.layout.batch_size, batch.cond.tokens
    assert tokens is not None
    cond = replace(batch.cond, negative_tokens=randn(*tokens.shape, seed=9) if negative else None)
    if two_time:
        cond = replace(cond, strength=torch.linspace(0.5, 3.0, size).double())
    t_B = torch.linspace(0.4, 0.9, size).double()
    s_B = 0.3 * t_B if two_time else None
    rule = Guidance(3.0, (0.6, 1.0), 0.5)
    field = Counted(flow, [])
    with torch.no_grad():
        got = rule.of(field, batch.x0, t_B, cond, batch.layout, s_B, flow.interpolant)
        again = rule.of(field, batch.x0, t_B, cond, batch.layout, s_B, flow.interpolant)
    torch.testing.assert_close(got, two_calls(rule, flow, batch.x0, t_B, replace(batch, cond=cond), s_B))
    assert torch.equal(got, again)
    assert [layout.batch_size for layout in field.layouts] == (2 * [2 * size] if once else 4 * [size])
    if isinstance(batch.layout, Packed):
        assert len({id(layout) for layout in field.layouts}) == 1  # so that maps and windows are made once


class Own(Condition):
    """A class of its own."""


@pytest.mark.parametrize(
    "cond", [Own(torch.ones(3, 2)), Condition(torch.ones(3, 2), torch.ones(3, 1, 2))], ids=["class", "shapes"]
)
def test_conditions_that_do_not_fit_into_one_batch_are_two_calls(
    cond: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guidance, "one_pass", lambda x: True)
    field = Counted(lambda x, t_B, cond, layout, s_B=None: x, [])
    assert torch.equal(Guidance(2.0).of(field, torch.ones(3, 4), torch.ones(3), cond, Dense(3)), torch.ones(3, 4))
    assert [layout.batch_size for layout in field.layouts] == [3, 3]


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_several_pictures(mode: Any, once: bool) -> None:
    """The negative prediction is made once, in the same pass as the first picture's."""
    flow, batch = structure()
    cond, grid = several_condition(randn(2, 5, 6, seed=4), 3), step_grid(2)
    t_B, rule = torch.full((3,), 0.5).double(), Guidance(3.0)
    views = [replace(cond, tokens=cond.tokens[:, i]) for i in ([1] if mode == "stochastic" else [0, 1])]  # type: ignore[index]
    each = [two_calls(rule, flow, batch.x0, t_B, replace(batch, cond=view), None) for view in views]
    wanted = torch.stack(each).mean(0)
    with torch.no_grad():
        field = Counted(flow, [])
        got = several_field(field, mode, grid, rule)(batch.x0, t_B, cond, batch.layout)
    torch.testing.assert_close(got, wanted)
    assert [layout.batch_size for layout in field.layouts] == ([6] if once else [3, 3]) + [3] * (len(views) - 1)


def test_evaluations_are_counted_as_two(once: bool) -> None:
    flow, batch = TinyBackbone().double(), tiny_batch((5, 2), packed=True)
    teacher, budget = Teacher(flow, Guidance(2.0, (0.5, 1.0))), Budget()
    budget.watch("teacher", flow)
    with counted(flow, lambda evaluations: None) as sizes:
        euler(teacher, batch.x0, batch.cond, batch.layout, step_grid(4), Step(0, Interpolant()))
    # Guided at 1, 0.75 and 0.5, and not at 0.25.
    assert sizes == ([4, 4, 4, 2] if once else 7 * [2])
    assert budget.snapshot()["teacher"]["forward"] == 14


def test_it_is_done_by_samplers_for_few_numbers_on_a_gpu() -> None:
    few: Any = SimpleNamespace(is_cuda=True, numel=lambda: FEW)
    many: Any = SimpleNamespace(is_cuda=True, numel=lambda: FEW + 1)
    assert not one_pass(few)
    with sampling():
        assert one_pass(few)
        assert not one_pass(many)
        assert not one_pass(torch.zeros(1))
    assert not one_pass(few)
    seen = []

    def field(x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, **more: Any) -> Tensor:
        seen.append(one_pass(few))
        return x

    euler(field, torch.zeros(1, 1), Condition(), Dense(1), [1.0, 0.0], Step(0, Interpolant()))
    assert seen == [True]


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    flow, batch = slat_flow().cuda(), slat_batch(dtype=torch.float32)
    teacher, grid, here = Teacher(flow, Guidance(3.0, (0.5, 1.0))), step_grid(4), batch.to("cuda")
    with counted(flow, lambda evaluations: None) as sizes:
        made = euler(teacher, here.x0, here.cond, here.layout, grid, Step(0, Interpolant(), device="cuda"))
    assert sizes == [8, 8, 8, 4]
    expected = euler(teacher.cpu(), batch.x0, batch.cond, batch.layout, grid, Step(0, Interpolant()))
    torch.testing.assert_close(made.cpu(), expected, rtol=1e-2, atol=1e-2)
