"""pi-Flow: its policy against an ODE that is solved in small steps, its loss against the paper's, and a closed form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import GAUSSIAN, RING, Given, exact_nets, gaussian_batch, gradients, largest, total
from fewstep_images.config import ImagesConfig
from fewstep_images.network import ImageFlow
from fewstep_toy.analytic import AnalyticFlow, GaussianMap
from fewstep_toy.network import ToyFlow
from fewstep_trajectory.config import PiFlowConfig
from fewstep_trajectory.pi_flow import PiFlow
from torch import Tensor

import fewstep
from fewstep.cli import main
from fewstep.config.resolve import resolve_stages
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import NetSpec, Step
from fewstep.core.policy import average, weights_of
from fewstep.engine.networks import Networks
from fewstep.plugins.registry import registry
from fewstep.testing import check_backbone, check_objective

NEEDS = frozenset({"policy", "two_time"})


def velocity(u: Tensor, x_t: Tensor, t: float, x: Tensor, r: float) -> Tensor:
    """The DX policy at (x, r): (x - x0) / r, x0 on the line between the two predictions next to r; u is [N, ...]."""
    place = min(r / t, 1.0) * (len(u) - 1)
    k = min(int(place), len(u) - 2)
    x0 = x_t - t * ((k + 1 - place) * u[k] + (place - k) * u[k + 1])
    return (x - x0) / r


def followed(u: Tensor, x_t: Tensor, t: float, x: Tensor, a: float, b: float, substeps: int = 100) -> Tensor:
    """Where the policy leads from x at a, by Runge and Kutta's fourth order."""
    h = (a - b) / substeps
    for i in range(substeps):
        r = a - i * h
        k1 = velocity(u, x_t, t, x, r)
        k2 = velocity(u, x_t, t, x - h / 2 * k1, r - h / 2)
        k3 = velocity(u, x_t, t, x - h / 2 * k2, r - h / 2)
        k4 = velocity(u, x_t, t, x - h * k3, r - h)
        x = x - h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_average_velocity_is_that_of_the_policys_ode(share: float) -> None:
    g = torch.Generator().manual_seed(0)
    u, x_t = torch.randn(4, 1, 3, generator=g, dtype=torch.float64), torch.randn(1, 3, generator=g, dtype=torch.float64)
    t, s = 0.8, 0.8 * share
    t_B, s_B = (torch.tensor([value], dtype=torch.float64) for value in (t, s))
    end = followed(u, x_t, t, x_t, t, s, 3000)
    assert largest(average(u, t_B, s_B, Dense(1)), (x_t - end) / (t - s)) < 1e-6


def test_the_weights_at_both_ends() -> None:
    """To the data the last prediction counts alone, and at s = t the first."""
    weights = weights_of(torch.tensor([0.0, 0.25, 0.999, 1.0], dtype=torch.float64), 5)
    assert largest(weights.sum(1), torch.ones(4)) < 1e-9
    assert largest(weights[0], torch.eye(5)[0]) < 1e-9
    assert largest(weights[3], torch.eye(5)[4]) < 1e-5
    assert bool((weights > -1e-9).all())


def test_the_velocity_at_t_is_what_the_average_tends_to() -> None:
    u = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t_B = torch.tensor([0.8], dtype=torch.float64)
    assert largest(average(u, t_B, None, Dense(1)), average(u, t_B, 0.9999 * t_B, Dense(1))) < 1e-2
    assert largest(u[0], u[-1]) > 0.1


def policy_student(seed: int = 0) -> ToyFlow:
    """Of three points, all weights random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ToyFlow(RING.model_copy(update={"width": 16, "depth": 2, "points": 3})).double()


LENGTHS = [1, 3, 2]


@pytest.mark.parametrize(
    ("packed", "middle", "rescale_t", "window"),
    [(False, 0.5, 1.0, 0.1), (True, 0.75, 3.0, 0.3)],
    ids=["dense", "ragged, warped, a step shorter than the window"],
)
def test_loss_and_gradient_are_the_papers(packed: bool, middle: float, rescale_t: float, window: float) -> None:
    """Two steps, from 1 to ``middle`` and from there to 0; each sample and state alone, its path solved in small
    steps."""
    g, count = torch.Generator().manual_seed(1), len(LENGTHS)
    layout: Layout = Packed.of_lengths(LENGTHS) if packed else Dense(count)
    x0 = torch.randn(sum(LENGTHS) if packed else count, 2, generator=g, dtype=torch.float64)
    tokens = torch.nn.functional.one_hot(torch.tensor([0, 3, 5]), 8).double()
    batch, noise = Batch(x0, layout, Condition(tokens)), torch.randn(x0.shape, generator=g, dtype=torch.float64)
    draws = {
        "noise": noise,
        "piece": torch.tensor([0.2, 0.7, 0.4]),  # the first step, the second, the first
        "state/0": torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64),
        "state/1": torch.tensor([0.3, 0.2, 0.6], dtype=torch.float64),
    }
    student = policy_student()
    nets = exact_nets(student, RING)
    losses = PiFlow(PiFlowConfig(steps=2, states=2, window=window, rescale_t=rescale_t)).loss(batch, nets, Given(draws))
    terms = []
    for i, (t, end) in enumerate([(1.0, middle), (middle, 0.0), (1.0, middle)]):
        rows, length = torch.tensor([i]), min(window, t - end)
        cond, one = Condition(tokens[i : i + 1]), torch.ones(1, dtype=torch.float64)
        data, eps = (layout.select(x, rows)[0][None] for x in (x0, noise))
        x_t = (1 - t) * data + t * eps
        u = student.rest(first_layer(student, x_t, t * one, cond)).unflatten(-1, (3, 2)).movedim(-2, 0)
        for j in range(2):
            a = end + length + float(draws[f"state/{j}"][i]) * (t - end - length)
            x_a = followed(u, x_t, t, x_t, t, a).detach()
            mean = (x_a - followed(u, x_t, t, x_a, a, a - length)) / length
            target = nets.teacher(x_a, a * one, cond, Dense(1)).detach()
            terms.append((mean - target).square().mean())
    wanted = torch.stack(terms).mean()
    assert float(total(losses).detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    expected = torch.autograd.grad(wanted, list(student.parameters()), allow_unused=True)
    given = gradients(losses, student)
    for ours, theirs in zip(given, expected, strict=True):
        assert largest(ours, torch.zeros_like(ours) if theirs is None else theirs) < 1e-4
    assert max(float(x.abs().max()) for x in given) > 1e-2


def first_layer(student: ToyFlow, x: Tensor, t_B: Tensor, cond: Condition) -> Tensor:
    """What ``student.rest`` is given."""
    found: list[Tensor] = []
    hook = student.rest.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    student(x, t_B, cond, Dense(1))
    hook.remove()
    return found[0]


class ExactPolicy(Backbone):
    """The teacher's own predictions of the data along the exact path of a Gaussian, at N points."""

    def __init__(self, points: int) -> None:
        super().__init__()
        self.points, self.map, self.flow = points, GaussianMap(GAUSSIAN).double(), AnalyticFlow(GAUSSIAN).double()

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        t, outputs = layout.expand(t_B, x), []
        for k in range(self.points):
            r_B = t_B * k / (self.points - 1)
            r = layout.expand(r_B, x)
            x_r = x - (t - r) * self.map(x, t_B, cond, layout, s_B=r_B)
            x0 = x_r - r * self.flow(x_r, r_B, cond, layout)
            outputs.append((x - x0) / t)
        return average(torch.stack(outputs), t_B, s_B, layout)


def test_the_teachers_own_predictions_have_the_bias_of_their_grid() -> None:
    """The error of a line between N points is of second order in their distance, so its square falls sixteenfold."""
    losses = []
    for points in (9, 17, 33):
        nets = exact_nets(ExactPolicy(points))
        objective = PiFlow(PiFlowConfig(states=4, window=1e-4))
        with torch.no_grad():
            losses.append(float(total(objective.loss(gaussian_batch(256), nets, Step(0, Interpolant(), seed=1)))))
    assert losses[0] < 1e-2
    assert 8 < losses[0] / losses[1] < 32
    assert 8 < losses[1] / losses[2] < 32


def test_the_student_starts_as_the_teacher() -> None:
    toy = ToyFlow(RING.model_copy(update={"width": 8})).double()
    images = ImageFlow(ImagesConfig(width=8, depth=1)).double()
    t_B, s_B = torch.tensor([0.9, 0.4]), torch.tensor([0.3, 0.0])
    for network, width in ((toy, 2), (images, 64)):
        x, student = torch.randn(2, width, dtype=torch.float64), network.student(NEEDS)
        own = network(x, t_B.double(), Condition(), Dense(2))
        for target in (None, s_B.double()):
            assert largest(student(x, t_B.double(), Condition(), Dense(2), s_B=target), own) < 1e-9
        assert type(student).Config(**student.config.model_dump()).points == 10


def test_both_backbones_pass_the_kit() -> None:
    """Also a network that is a policy already."""
    images = ImageFlow(ImagesConfig(width=8, depth=1))
    batch = Batch(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), Dense(3))
    check_backbone(images, batch)
    check_backbone(images.student(NEEDS), batch)
    check_backbone(policy_student().float(), Batch(batch.x0[:, :2], Dense(3)))


@pytest.mark.parametrize("keys", [{}, {"steps": 2, "states": 1, "loss": "pseudo-huber", "reduction": "element"}])
def test_conformance(keys: dict[str, Any]) -> None:
    check_objective(PiFlow, PiFlowConfig(**keys))


@pytest.mark.parametrize("stage", ["ss", "slat"])
def test_on_both_stages_of_trellis(stage: str, tmp_path: Path) -> None:
    run, keys = tmp_path / "run", ["train.steps=2", "train.batch_size=2", "train.lr=0.01", "train.threads=1"]
    assert main(["distill", "-m", "pi-flow", "-b", "trellis", "--stage", stage, "--out", str(run), *keys]) == 0
    student = fewstep.load(run, device="cpu")
    model, batch = student.network.model, student.prompts(2)
    assert (model.points, model.args["points"]) == (10, 10)
    x = Step(0, student.network.interpolant, seed=0).randn_like(batch.x0, "noise")
    where = (batch.layout,) if isinstance(batch.layout, Packed) else ()
    with torch.no_grad():
        velocities = model(x, torch.full((2,), 1000.0), batch.cond, *where)
    assert (velocities[0] - velocities[-1]).abs().max() > 1e-3
    # One step ends at the data that the first of the velocities predicts.
    torch.testing.assert_close(student.sample(batch), x - velocities[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", ["toy", "images", "trellis", "trellis-slat"])
def test_every_layer_is_trained(backbone: str) -> None:
    """The wider last layer is new and trainable, unlike the frozen copies beside it, which must become so."""
    keys = {"teacher": "learned", "pretrain": 2} if backbone in ("toy", "images") else {}
    (resolved,) = resolve_stages("pi-flow", backbone, layers=[{"backbone": keys}]).values()
    teacher = registry().get("backbone", backbone).load().teacher(resolved.config.backbone)
    networks = Networks({"student": NetSpec()}, teacher, torch.device("cpu"), needs=NEEDS)
    student = dict(networks.trained["student"].named_parameters())
    assert networks.parameters["student"].keys() == student.keys()
    wider = {name for name, p in teacher.backbone.named_parameters() if p.shape != student[name].shape}
    assert {name.rpartition(".")[2] for name in wider} == {"weight", "bias"}


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    tiny = ["train.steps=2", "train.batch_size=8", "backbone.pretrain=2", "backbone.width=8", "data.held_out=8"]
    assert main(["distill", "--method", "pi-flow", "--backbone", "toy", "--out", str(run), *tiny]) == 0
    width, inputs, outputs = 8, 16, 20  # 11 of x and t, 5 of t - s; ten velocities
    weights = (inputs * width + width) + 2 * (width * width + width) + (width * outputs + outputs)
    assert f"trained weights: student {weights:,}\n" in capsys.readouterr().out
    contract = json.loads((run / "student" / "config.json").read_text())["contract"]
    assert (contract["sampler"], contract["two_time"], contract["steps"]) == ("jump", True, [1])
    assert fewstep.load(run).sample(4).shape == (4, 2)
