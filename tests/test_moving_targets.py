"""Velocity matching towards a moving average of the student: written out, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import RING, Given, draws, largest, random_student, ring_batch
from fewstep_mdt.config import MDTConfig, VMConfig
from fewstep_mdt.vd import MDT, VelocityDistillation
from fewstep_mdt.vm import VelocityMatching
from fewstep_toy.analytic import AnalyticFlow
from pydantic import ValidationError

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.objective import Nets

D = 0.03
EMA: dict[str, Any] = {"target": "ema", "target_ema": 0.9, "interval": D, "d_norm": "none"}


@pytest.fixture
def batch() -> Batch:
    return ring_batch()


@pytest.fixture
def nets() -> Nets:
    """Student, its average (another network, so that the two cannot be mistaken), and the exact teacher."""
    modules = {"student": random_student(RING), "teacher": Teacher(AnalyticFlow(RING).double())}
    return Nets(modules, {("student", 0.9): random_student(RING, seed=5)})


def given(batch: Batch) -> Given:
    return Given(draws(batch.x0, batch.layout.batch_size, 0))


@pytest.mark.parametrize("difference", ["published", "euler"])
def test_the_average_predicts_at_the_earlier_time(batch: Batch, nets: Nets, difference: str) -> None:
    config = VMConfig(difference=difference, **EMA)
    found = VelocityMatching(config).targets(batch, nets, given(batch))
    step = given(batch)
    noise, t_B = step.draws["noise"], found.t_B
    t = t_B[:, None]
    x_t = (1 - t) * batch.x0 + t * noise
    v = nets.teacher(x_t, t_B, batch.cond, batch.layout)
    now = nets.student(x_t, t_B, batch.cond, batch.layout)
    before = nets.ema("student", 0.9)(x_t - D * v, t_B - D, batch.cond, batch.layout)
    span = t if difference == "published" else t - D
    assert largest(found.v_tgt, v - span * (now - before) / D) < 1e-12
    assert largest(found.v_pred, now) == 0
    assert not found.v_tgt.requires_grad


@pytest.mark.parametrize("keys", [{"kind": "cm"}, {"kind": "discrete", "difference": "euler"}])
def test_an_interval_that_ends_at_a_jump_of_the_teacher_is_the_shorter_one(
    batch: Batch, nets: Nets, keys: dict[str, Any]
) -> None:
    """The first two times are less than D above the edge, so the teacher's Euler step ends there."""
    edge, step = 0.4, given(batch)
    step.edges = (edge,)
    step.draws["t"] = torch.tensor([0.385, 0.39, 0.5, 0.6, 0.7, 0.8], dtype=torch.float64)
    found = VelocityMatching(VMConfig(**EMA, **keys)).targets(batch, nets, step)
    t_B = found.t_B
    length_B = torch.where(t_B > edge, torch.minimum(t_B - edge, torch.full_like(t_B, D)), D)
    assert (length_B < D).tolist() == [True, True, False, False, False, False]
    t, length = t_B[:, None], length_B[:, None]
    x_t = (1 - t) * batch.x0 + t * step.draws["noise"]
    v = nets.teacher(x_t, t_B, batch.cond, batch.layout)
    earlier = x_t - length * v
    before = nets.ema("student", 0.9)(earlier, t_B - length_B, batch.cond, batch.layout)
    jump, target = x_t - t * nets.student(x_t, t_B, batch.cond, batch.layout), earlier - (t - length) * before
    apart = found.v_pred - found.v_tgt
    assert largest(apart if keys["kind"] == "cm" else -length * apart, jump - target) < 1e-12


def test_distillation_keeps_the_students_own_velocity(batch: Batch, nets: Nets) -> None:
    plain = MDTConfig(**{**EMA, "target": "student"})
    one = VelocityDistillation(MDTConfig(**EMA)).targets(batch, nets, given(batch))
    two = VelocityDistillation(plain).targets(batch, nets, given(batch))
    assert torch.equal(one.v_pred, two.v_pred)
    assert torch.equal(one.v_tgt, two.v_tgt)


def test_the_run_keeps_the_average() -> None:
    for objective in (VelocityMatching(VMConfig(**EMA)), MDT(MDTConfig(**EMA))):
        assert objective.networks()["student"].ema == (0.9,)
    assert MDT(MDTConfig()).networks()["student"].ema == ()


def test_the_exact_derivative_has_no_second_network() -> None:
    with pytest.raises(ValidationError, match="target must be 'student'"):
        VMConfig(kind="continuous", target="ema")
