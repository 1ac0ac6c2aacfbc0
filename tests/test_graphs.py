"""CUDA graphs without a GPU: what is recorded and copied, what a replay is held against, when it falls back and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from engine_helpers import OBJECTIVES, ObjectiveConfig, Regress, trainer
from graph_helpers import Rerun
from torch import Tensor

from fewstep.core import guidance
from fewstep.core.batch import Batch
from fewstep.core.graphs import Graphed, GraphedField
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.objective import Nets, Objective, Step
from fewstep.core.samplers import euler, jump
from fewstep.core.times import TimeSampler, step_grid
from fewstep.engine.graphed import GraphedGradients
from fewstep.engine.trainer import Trainer
from fewstep.testing import TinyBackbone, tiny_batch


@pytest.fixture(autouse=True)
def _none_made() -> None:
    Rerun.made.clear()


def test_the_second_call_of_a_kind_records_and_later_ones_replay() -> None:
    calls, said = [], list[str]()

    def double(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(x)
        return (2 * x,)

    graphed = Graphed(said.append, Rerun)
    for number in range(1, 5):
        (out,) = graphed("double", double, [torch.full((3,), float(number))])
        assert out.tolist() == [2.0 * number] * 3
    # Plainly; plainly, recorded, checked; replayed twice on the tensor that was recorded.
    assert len(calls) == 1 + 3 + 2
    assert all(x is calls[2] for x in calls[2:])
    assert [one.replays for one in Rerun.made] == [3]
    for _ in range(2):
        graphed("double", double, [torch.ones(4)])
        graphed("other", double, [torch.ones(3)])
    assert len(Rerun.made) == 3
    assert said == []


class Frozen(Rerun):
    """A recording that took its inputs for constants."""

    def replay(self) -> None:
        pass


class Fails(Rerun):
    def record(self, run: Callable[[], None]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (Frozen, r"its first replay differs from a plain call by 1\.0e\+00"),
        (Fails, "operation not permitted when stream is capturing$"),
    ],
)
def test_what_cannot_be_trusted_runs_plainly_and_says_why_once(graph: type[Rerun], why: str) -> None:
    said: list[str] = []
    graphed = Graphed(said.append, graph)
    for number in range(5):
        (out,) = graphed("double", lambda x: (2 * x,), [torch.full((3,), float(number))])
        assert out.tolist() == [2.0 * number] * 3
    assert len(said) == 1
    assert re.search(f"^no CUDA graph: {why}", said[0])


class Named(Objective[ObjectiveConfig]):
    """All draws by name; a choice, a term that begins later, two terms on the same noise."""

    Config = ObjectiveConfig

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        x0, layout = batch.x0, batch.layout
        t_B = step.times(layout, TimeSampler())
        x_t = step.interpolant.interpolate(x0, step.randn_like(x0, "noise"), t_B, layout)
        with torch.no_grad():
            v = nets.teacher(x_t, t_B, batch.cond, layout)
        terms = {"fit": (nets.student(x_t, t_B, batch.cond, layout) - step.choice((0.5, 1.0), "size") * v).square()}
        if step.decide(lambda index: index >= 12):
            again = step.randn_like(x0, "noise") + step.randn_like(x0)
            terms["late"] = (nets.student(again, t_B, batch.cond, layout)).square()
        return terms


def trained(graph: Any, objective: str, **keys: Any) -> tuple[Trainer, list[Any], list[str]]:
    said, rows = list[str](), list[Any]()
    run = trainer(objective, said=said, steps=20, ema=(0.9,), **keys)
    if graph is not None:
        run.gradients.graphed = GraphedGradients(run, graph)
    run.train(rows.append, lambda: None)
    return run, rows, said


@pytest.mark.parametrize(("objective", "accumulate"), [("named", 1), ("named", 3), ("tiny-critic", 1)])
def test_a_run_by_graphs_is_the_plain_run(objective: str, accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "named", Named)
    plain, rows, _ = trained(None, objective, accumulate=accumulate)
    graphed, same, said = trained(Rerun, objective, accumulate=accumulate)
    assert said == []
    assert len(Rerun.made) == {"named": 4, "tiny-critic": 2}[objective]  # chosen among two, before and after a start
    assert sum(one.replays for one in Rerun.made) >= 20 * accumulate - 8
    assert [{**row, "seconds": 0} for row in same] == [{**row, "seconds": 0} for row in rows]
    for name, tensor in plain.nets.state().items():
        assert torch.equal(graphed.nets.state()[name], tensor), name
    assert graphed.budget.snapshot() == plain.budget.snapshot()


class Looks(Named):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"fit": super().loss(batch, nets, step)["fit"] * (1 + step.progress)}


@pytest.mark.parametrize(
    ("objective", "why"),
    [(Looks, "looks at the number of the iteration"), (Regress, "draws from a generator of its own")],
)
def test_what_a_graph_cannot_repeat_is_not_recorded(
    objective: type[Objective[Any]], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "refused", objective)
    _, rows, _ = trained(None, "refused")
    _, same, said = trained(Rerun, "refused")
    assert said == [f"no CUDA graph: the objective {why}"]
    assert Rerun.made == []
    assert [row["loss"] for row in same] == [row["loss"] for row in rows]


def test_off_cuda_the_key_changes_nothing_and_says_so() -> None:
    said: list[str] = []
    run = trainer(said=said, graphs=True)
    assert run.gradients.graphed is None
    assert said == ["train.graphs has no effect on cpu"]


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("two_time", [False, True])
def test_a_sampler_on_replayed_evaluations_gives_the_same(
    two_time: bool, one_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guidance, "one_pass", lambda x: one_pass)
    said, flow, batch = list[str](), TinyBackbone(), tiny_batch(dtype=torch.float32)
    draw: Any = jump if two_time else euler
    graphs, rule = Graphed(said.append, Rerun), Guidance(2.0, (0.5, 1.0))
    fields: list[Any] = [partial(rule.of, one) for one in (flow, GraphedField(flow, graphs))]
    step, grid = Step(0, Interpolant()), step_grid(6)
    plain, replayed = (draw(one, batch.x0, batch.cond, batch.layout, grid, step) for one in fields)
    assert torch.equal(plain, replayed)
    assert said == []
    # Of 6 steps 4 are guided. Two calls: 6 with the condition, 4 without it. One pass: 4 with both, 2 with it alone.
    assert [one.replays for one in Rerun.made] == ([3, 1] if one_pass else [5, 3])
    again = draw(GraphedField(flow, graphs), batch.x0, batch.cond, batch.layout, grid, step)  # the same recordings
    assert torch.equal(again, draw(flow, batch.x0, batch.cond, batch.layout, grid, step))
    assert len(Rerun.made) == 2


def test_ragged_samples_are_evaluated_plainly() -> None:
    flow, batch = TinyBackbone(), tiny_batch((2, 5), packed=True, dtype=torch.float32)
    field = GraphedField(flow, Graphed(print, Rerun))
    for t in (0.1, 0.2, 0.3):
        t_B = torch.full((2,), t)
        assert torch.equal(
            field(batch.x0, t_B, batch.cond, batch.layout), flow(batch.x0, t_B, batch.cond, batch.layout)
        )
    assert Rerun.made == []
