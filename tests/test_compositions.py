"""Sums of methods under a name of their own, ``rcm`` and ``anyflow``, and dmd2 on the jumps of a flow map."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import GAUSSIAN, Given, exact_nets, gradients, largest, total
from distribution_helpers import DROPPED, MEAN, STD, drawn, tiny_nets, told
from fewstep_distribution.config import DMD2Config
from fewstep_distribution.jumps import JumpDMD2
from fewstep_toy.analytic import GaussianMap
from torch import Tensor

import fewstep
from fewstep.cli import main
from fewstep.config.recorded import Words
from fewstep.config.resolve import resolve_run
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense
from fewstep.core.objective import Nets, Objective, Step
from fewstep.errors import FewstepError
from fewstep.methods.fakes import roll_out
from fewstep.plugins.registry import Combined, registry
from fewstep.testing import check_objective, tiny_batch


def resolved(method: str, *overrides: str, preset: str | None = None) -> Any:
    (found,) = resolve_run(Words(method, "toy", preset=preset), overrides).values()
    return found


def made(method: str, *overrides: str) -> Objective[Any]:
    found = resolved(method, *overrides)
    objective: Objective[Any] = found.method.load()(found.config.objective)
    return objective


# The mechanism.


def test_a_name_stands_for_a_sum_with_a_preset() -> None:
    found = resolved("rcm", "objective.weights.dmd2=0.5")
    assert (found.method.name, [part.name for part in found.method.parts]) == ("rcm", ["scm", "dmd2"])
    objective = found.config.objective
    assert (objective.starts.dmd2, objective.weights.dmd2, objective.dmd2.steps) == (0.1, 0.5, 4)
    assert found.sources["objective.starts.dmd2"] == "preset default (fewstep_consistency)"
    assert found.config.train.batch_size == 512  # the toy's, by the parts


def test_its_own_preset_goes_before_those_of_the_parts() -> None:
    plain, paper = resolved("meanflow+dmd2-jump", preset="paper"), resolved("anyflow", preset="paper")
    assert (plain.config.objective.meanflow.apart, paper.config.objective.meanflow.apart) == (0.25, 0.5)
    default = resolved("anyflow").config.objective
    assert (default.meanflow.power, default.meanflow.central) == (0.0, 0.005)  # of the toy's meanflow, and its own


def test_a_named_sum_is_a_part_like_others() -> None:
    found = resolved("rcm+pcm", "objective.rcm.scm.warmup=0.3")
    assert (found.config.objective.rcm.starts.dmd2, found.config.objective.rcm.scm.warmup) == (0.1, 0.3)
    objective = found.method.load()(found.config.objective)
    assert set(objective.networks()) == {"student", "critic"}


def test_a_part_that_is_missing_is_named_when_it_is_asked_for() -> None:
    entry = Combined("objective", "odd", "third", "scm+absent", find=lambda name: registry().get("objective", name))
    with pytest.raises(FewstepError, match="unknown method 'absent'"):
        entry.load()


# rCM: what it adds up, and when.


def test_rcm_is_the_sum_of_its_parts() -> None:
    batch, nets = tiny_batch(), tiny_nets()
    objective = made("rcm", "objective.weights.scm=100", "objective.starts.dmd2=5")
    early, late = (objective.loss(batch, nets, Step(i, Interpolant(), total=100)) for i in (4, 5))
    assert set(early) == {"scm/scm"}
    assert set(late) == {"scm/scm", "dmd2/dmd", "dmd2/critic"}
    values = resolved("rcm").config.objective
    for name, weight in (("scm", 100.0), ("dmd2", 1.0)):
        part = registry().get("objective", name).load()(getattr(values, name))
        for term, value in part.loss(batch, nets, Step(5, Interpolant(), total=100)).items():
            assert largest(late[f"{name}/{term}"], weight * value) == 0
    assert objective.contract().sampler == "consistency"


@pytest.mark.parametrize(("method", "late"), [("rcm", "dmd2"), ("anyflow", "dmd2-jump")])
def test_the_shipped_settings_pass_the_conformance_kit(method: str, late: str) -> None:
    found = resolved(method, f"objective.starts.{late}=0")
    check_objective(found.method.load(), found.config.objective)


# DMD2 on jumps.


def jumped(batch: Batch, nets: Nets, draws: dict[str, Tensor], times: list[float]) -> list[Tensor]:
    """Each sample's fake, made alone."""
    found, one, noise = [], torch.ones(1, dtype=torch.float64), draws["noise_fake"]
    for i in range(batch.layout.batch_size):
        rows, cond = torch.tensor([i]), told(batch, draws, i)
        x = batch.layout.select(noise, rows)[0].reshape(1, -1, noise.shape[-1])
        for t, s in pairwise(times):
            x = x - (t - s) * nets.student(x, t * one, cond, Dense(1), s_B=s * one)
        found.append(x)
    return found


class Chosen(Given):
    """With a given choice."""

    def choice(self, values: tuple[float, ...], name: str) -> float:
        return 1


@pytest.mark.parametrize("lengths", [(4, 4, 4), (2, 5, 1)], ids=["dense", "ragged"])
def test_the_gradient_is_dmds_through_all_jumps(lengths: tuple[int, ...]) -> None:
    """Of 4 steps the second one, 3/4 to 1/2, is trained: 1 to 3/4 to 1/2 to 0."""
    batch, nets = tiny_batch(lengths, packed=lengths[0] != lengths[1]), tiny_nets()
    draws = drawn(batch)
    losses = JumpDMD2(DMD2Config(steps=4, reduction="sample", p_uncond=DROPPED)).loss(batch, nets, Chosen(draws))
    terms = []
    for i, x in enumerate(jumped(batch, nets, draws, [1.0, 0.75, 0.5, 0.0])):
        cond, t = batch.select(torch.tensor([i])).cond, draws["t/dmd"][i : i + 1]
        eps = batch.layout.select(draws["noise/dmd"], torch.tensor([i]))[0].reshape(x.shape)
        with torch.no_grad():
            x_t = (1 - t) * x + t * eps
            real = x_t - t * nets.teacher(x_t, t, cond, Dense(1))
            fake = x_t - t * nets.critic(x_t, t, told(batch, draws, i), Dense(1))
            direction = (fake - real) / (x - real).abs().mean()
        terms.append((x * direction).mean())
    wanted = torch.autograd.grad(torch.stack(terms).mean(), list(nets.student.parameters()), allow_unused=True)
    found = gradients({"dmd": losses["dmd"]}, nets.student)
    assert largest(found, [torch.zeros_like(f) if w is None else w for f, w in zip(found, wanted, strict=True)]) < 1e-12
    assert float(torch.cat([g.reshape(-1) for g in found]).abs().max()) > 1e-4


@pytest.mark.parametrize("steps", [1, 4])
def test_an_exact_flow_map_makes_the_teachers_samples_and_stays(steps: int) -> None:
    """Jumps of any lengths lead from z to mean + std z; where the critic has the teacher's velocity, nothing moves."""
    student = GaussianMap(GAUSSIAN).double()
    given = exact_nets(student)
    nets = Nets({"student": student, "teacher": given.teacher, "critic": given.teacher.backbone}, {})
    batch = Batch(torch.zeros(50, 2, dtype=torch.float64), Dense(50))
    grid = tuple(k / steps for k in range(steps, -1, -1))
    for seed in range(3):
        step = Step(0, Interpolant(), seed=seed)
        x = roll_out(batch, Condition(), nets, step, grid)
        assert largest(x, MEAN + STD * step.randn_like(batch.x0, "noise_fake")) < 1e-12
    losses = JumpDMD2(DMD2Config(steps=steps)).loss(batch, nets, Step(0, Interpolant()))
    assert float(total({"dmd": losses["dmd"]}).detach()) < 1e-20
    assert largest(gradients({"dmd": losses["dmd"]}, student), [torch.zeros(2)]) < 1e-12


def test_conformance_of_dmd2_on_jumps() -> None:
    check_objective(JumpDMD2, DMD2Config(steps=4, reduction="sample", critic_ratio=2, p_uncond=0.5))


def test_anyflow_from_the_command_line(tmp_path: Path) -> None:
    run = ["distill", "--method", "anyflow", "--backbone", "toy", "--out", str(tmp_path / "a")]
    tiny = ["train.steps=3", "train.batch_size=8", "backbone.pretrain=1", "backbone.width=8", "data.held_out=8"]
    assert main([*run, *tiny, "objective.starts.dmd2-jump=1"]) == 0
    student = fewstep.load(tmp_path / "a")
    assert (student.info.method, student.sample(4, steps=2).shape) == ("anyflow", (4, 2))
