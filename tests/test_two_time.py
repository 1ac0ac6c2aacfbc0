"""A second time on TRELLIS's flows, which have one: the student starts as the teacher, learns, and survives a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fewstep_flowmaps.config import AdaptiveConfig
from fewstep_flowmaps.meanflow import MeanFlow
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.flow import Flow
from fewstep_trellis.models import SLatFlowModel, SparseStructureFlowModel
from fewstep_trellis.slat import StructuredLatentFlow
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import NetSpec, Step
from fewstep.core.samplers import jump
from fewstep.engine.networks import Networks
from fewstep.errors import FewstepError
from fewstep.testing import check_backbone

TWO_TIME = frozenset({"two_time"})
SIZE = {"resolution": 4, "in_channels": 2, "model_channels": 16, "cond_channels": 6, "out_channels": 2}
DEPTH = {"num_blocks": 1, "num_heads": 2, "patch_size": 1}
Made = tuple[Flow, Batch]


@pytest.fixture(params=["structure", "slat"])
def made(request: pytest.FixtureRequest) -> Made:
    """A teacher with weights everywhere, and two samples."""
    torch.manual_seed(0)
    cond = Condition(torch.randn(2, 5, 6))
    flow: Flow
    if request.param == "structure":
        flow = StructureFlow(SparseStructureFlowModel(**SIZE, **DEPTH))  # type: ignore[arg-type]
        batch = Batch(torch.randn(2, 2, 4, 4, 4), Dense(2), cond)
    else:
        flow = StructuredLatentFlow(SLatFlowModel(**SIZE, **DEPTH))  # type: ignore[arg-type]
        coords = torch.stack(torch.meshgrid(*[torch.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:7]
        batch = Batch(torch.randn(7, 2), Packed.of_lengths([3, 4], coords), cond)
    for parameter in flow.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return flow, batch


def ask(flow: Flow, batch: Batch, s: tuple[float, float] | None) -> Tensor:
    t_B = torch.tensor([0.9, 0.5])
    with torch.no_grad():
        return flow(batch.x0, t_B, batch.cond, batch.layout, s_B=None if s is None else torch.tensor(s))


def ask_at(flow: Flow, x: Tensor, batch: Batch, t: float, s: float) -> Tensor:
    with torch.no_grad():
        return flow(x, torch.full((2,), t), batch.cond, batch.layout, s_B=torch.full((2,), s))


def trained(flow: Flow) -> Flow:
    """A student of two times whose second has been learnt."""
    student = flow.student(TWO_TIME)
    torch.nn.init.normal_(student.model.jump_embedder.mlp[2].weight)
    return student


def test_it_starts_as_the_teacher_and_then_tells_target_times_apart(made: Made) -> None:
    flow, batch = made
    before = ask(flow, batch, None)
    assert before.abs().max() > 1e-3
    student = flow.student(TWO_TIME)
    assert torch.equal(ask(student, batch, (0.0, 0.2)), before)
    student = trained(flow)
    assert torch.equal(ask(student, batch, (0.9, 0.5)), before)  # no jump at all: the velocity
    assert torch.equal(ask(student, batch, None), before)
    far, near = ask(student, batch, (0.0, 0.2)), ask(student, batch, (0.5, 0.3))
    assert all((a - b).abs().max() > 1e-3 for a, b in [(far, before), (near, before), (far, near)])


def test_only_a_student_that_needs_it_has_one(made: Made) -> None:
    flow, batch = made
    for one in (flow, flow.student()):
        with pytest.raises(
            FewstepError, match="takes one time; a student for a method that needs 'two_time' takes two"
        ):
            ask(one, batch, (0.0, 0.2))
    assert list(flow.student().state_dict()) == list(flow.state_dict())
    once = trained(flow)
    twice = once.student(TWO_TIME)  # of a teacher that has two times already
    assert torch.equal(ask(twice, batch, (0.0, 0.2)), ask(once, batch, (0.0, 0.2)))
    assert len(twice.state_dict()) == len(flow.state_dict()) + 2


@pytest.mark.parametrize("half", [False, True])
def test_it_survives_a_file(made: Made, tmp_path: Path, half: bool) -> None:
    flow, batch = made
    student = trained(flow)
    student.save(tmp_path, half=half)
    assert json.loads((tmp_path / "model.json").read_text())["args"]["two_time"] is True
    expected = ask(student, batch, (0.0, 0.2))
    again = ask(type(flow).load(tmp_path), batch, (0.0, 0.2))
    torch.testing.assert_close(again, expected, rtol=0, atol=2e-2 if half else 0)
    flow.save(tmp_path / "plain")
    assert "two_time" not in json.loads((tmp_path / "plain" / "model.json").read_text())["args"]


def test_the_engine_trains_all_of_it_and_the_sampler_uses_it(made: Made) -> None:
    """The copy of a frozen teacher is trained whole, not its new weights alone."""
    flow, batch = made
    count = len(list(flow.parameters()))
    teacher = Teacher(flow)
    objective = MeanFlow(AdaptiveConfig(apart=1.0))
    specs = {"student": NetSpec()}
    nets = Networks(specs, teacher, torch.device("cpu"), needs=objective.needs)
    student = nets.trained["student"]
    assert len(nets.parameters["student"]) == count + 2
    assert not any(p.requires_grad for p in teacher.parameters())
    step = Step(0, flow.interpolant)
    torch.stack([term.mean() for term in objective.loss(batch, nets.view, step).values()]).sum().backward()
    assert isinstance(student, Flow)
    mix = student.model.jump_embedder.mlp[2].weight
    assert bool(mix.grad.abs().max() > 0)
    mix.data -= mix.grad
    x = jump(student, batch.x0, batch.cond, batch.layout, [1.0, 0.5, 0.0], step)
    first = batch.x0 - 0.5 * ask_at(student, batch.x0, batch, 1.0, 0.5)
    torch.testing.assert_close(x, first - 0.5 * ask_at(student, first, batch, 0.5, 0.0))


def test_the_guidance_strength_is_an_input_beside_it(made: Made, tmp_path: Path) -> None:
    flow, batch = made
    before = ask(flow, batch, None)
    told = [replace(batch, cond=batch.cond.with_strength(w, batch.x0, batch.layout)) for w in (1.0, 7.0)]
    assert torch.equal(ask(flow, told[1], None), before)  # it has no such input
    student = flow.student(TWO_TIME | {"guidance_input"})
    assert torch.equal(ask(student, told[1], (0.0, 0.2)), before)
    torch.nn.init.normal_(student.model.strength_embedder.mlp[2].weight)
    weak, strong = (ask(student, one, (0.0, 0.2)) for one in told)
    assert all((a - b).abs().max() > 1e-3 for a, b in [(weak, strong), (weak, before)])
    assert torch.equal(ask(student, batch, (0.0, 0.2)), before)
    student.save(tmp_path)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["name"] in ("SparseStructureFlowModel", "SLatFlowModel")
    assert (facts["args"]["two_time"], facts["args"]["guidance_input"]) == (True, True)
    assert torch.equal(ask(type(flow).load(tmp_path), told[1], (0.0, 0.2)), strong)
    assert torch.equal(ask(student.student(frozenset({"guidance_input"})), told[1], (0.0, 0.2)), strong)


def test_a_student_passes_the_kit(made: Made) -> None:
    flow, batch = made
    check_backbone(trained(flow), batch)
