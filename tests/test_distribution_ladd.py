"""LADD: against the paper's hinge loss on several heads, and moments of Gaussians in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import Given, gradients, largest, total
from distribution_helpers import (
    DROPPED,
    LATE,
    MEAN,
    STD,
    TEACHER,
    LinearStudent,
    drawn,
    logit,
    noisy,
    quadrature,
    tiny_nets,
    told,
)
from fewstep_distribution.config import LADDConfig
from fewstep_distribution.gan import Head
from fewstep_distribution.ladd import LADD
from fewstep_toy.config import ToyConfig
from fewstep_toy.network import ToyFlow
from torch import Tensor, nn

import fewstep
from fewstep.config.resolve import resolve_stages
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Nets, Step
from fewstep.errors import FewstepError
from fewstep.testing import TinyBackbone, check_objective, tiny_batch


@pytest.mark.parametrize("keys", [{}, {"steps": 3, "p_uncond": 0.5, "taps": (0, -1), "head_ratio": 1}])
def test_conformance(keys: dict[str, Any]) -> None:
    check_objective(LADD, LADDConfig(**keys))


def with_heads(count: int) -> Nets:
    torch.manual_seed(0)
    nets = tiny_nets()
    return Nets({**nets._modules, "discriminator": Head([16] * count).double()}, {})


@pytest.mark.parametrize("lengths", [(4, 4, 4), (2, 5, 1)])
def test_the_formulas_of_the_paper(lengths: tuple[int, ...]) -> None:
    """The hinge loss of each head alone, on noisy data and noisy fakes; the student's gradient through the teacher,
    which never sees a dropped condition."""
    batch, nets = tiny_batch(lengths, packed=lengths[0] != lengths[1]), with_heads(2)
    draws = drawn(batch) | {"jump": torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)}
    for p in nets.discriminator.parameters():  # some logits beyond the hinge
        p.data.mul_(4)
    losses = LADD(LADDConfig(steps=2, taps=(0, -1), p_uncond=DROPPED)).loss(batch, nets, Given(draws))
    misled, found_out = [], []
    for i in range(len(lengths)):
        one = batch.select(torch.tensor([i]))

        def of(values: Tensor, row: int = i) -> Tensor:
            return batch.layout.select(values, torch.tensor([row]))[0].reshape(-1, 3)

        s = 1.0 if float(draws["jump"][i]) < 0.5 else 0.5
        x_s = (1 - s) * of(batch.x0) + s * of(draws["noise_fake"])
        s_B = torch.tensor([s], dtype=torch.float64)
        x = x_s - s * nets.student(x_s[None], s_B, told(batch, draws, i), Dense(1))[0]
        t, eps = float(draws["t/ladd"][i]), of(draws["noise/ladd"])

        def judged(x: Tensor, t: float = t, eps: Tensor = eps, cond: Condition = one.cond) -> list[Tensor]:
            x_t = (1 - t) * x + t * eps
            return [logit(nets.teacher.backbone, nets.discriminator, x_t, t, cond, k) for k in range(2)]

        misled.append(-sum(judged(x)) / 2)
        pairs = zip(judged(of(batch.x0)), judged(x.detach()), strict=True)
        found_out.append(sum((1 - real).clamp(min=0) + (1 + fake).clamp(min=0) for real, fake in pairs) / 2)
    for name, parts, trained, other in (
        ("ladd", misled, nets.student, nets.discriminator),
        ("discriminator", found_out, nets.discriminator, nets.student),
    ):
        value = torch.stack([torch.as_tensor(part) for part in parts]).mean()
        assert largest(total({name: losses[name]}), value) < 1e-12
        wanted = torch.autograd.grad(value, list(trained.parameters()), retain_graph=True)
        assert largest(gradients({name: losses[name]}, trained), wanted) < 1e-12
        assert max(float(g.abs().max()) for g in wanted) > 0
        assert max(float(g.abs().max()) for g in gradients({name: losses[name]}, other)) == 0
    assert all(p.grad is None for p in nets.teacher.parameters())


class Moments(Backbone):
    """A teacher whose inner layer is x and x^2 of each coordinate."""

    provides = frozenset({"dense", "features"})

    def taps(self) -> list[tuple[nn.Module, int]]:
        return [(self, 4)]

    def features(
        self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, taps: Sequence[int] = (-1,)
    ) -> tuple[Tensor, list[Tensor]]:
        return x, [torch.cat([x, x.square()], 1)]


class Plane(nn.Module):
    """A head that is linear in these moments."""

    def __init__(self, weight: Sequence[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, features: list[Tensor], layout: Layout) -> Tensor:
        return features[0] @ self.weight

    def logits(self, features: list[Tensor], layout: Layout) -> Tensor:
        return (features[0] @ self.weight)[None]


@pytest.mark.parametrize("t", [0.2, 0.7])
@pytest.mark.parametrize("right", [False, True])
def test_expected_gradients_of_gaussians(t: float, right: bool) -> None:
    """While no hinge is reached, the discriminator learns the difference of the noisy moments, which vanishes for the
    right student alone, and the student climbs the plane: -(1 - t) (a + 2 b (1 - t) mean) for its mean and
    -2 b (1 - t)^2 scale for its scale. At the right student and a flat discriminator nothing moves."""
    given = ((STD, STD), (float(MEAN[0]), float(MEAN[1]))) if right else ((0.8, 0.3), (0.4, -1.0))
    student, (z, eps, weights) = LinearStudent(*given), quadrature()
    draws = {
        "noise_fake": z,
        "noise/ladd": eps,
        "jump": torch.zeros(len(z)),
        "t/ladd": torch.full((len(z),), t, dtype=torch.float64),
    }
    batch, line = Batch(STD * z + MEAN, Dense(len(z))), (0.004, -0.003, 0.002, 0.001)
    for slope in ((0.0,) * 4, line):
        head = Plane(slope)
        nets = Nets({"student": student, "discriminator": head, "teacher": Teacher(Moments())}, {})
        losses = LADD(LADDConfig()).loss(batch, nets, Given(draws))
        (told,) = torch.autograd.grad((weights * losses["discriminator"]).sum(), list(head.parameters()))
        means, truth = (1 - t) * student.mean, (1 - t) * MEAN
        squares = noisy(student.scale, t) + means**2 - noisy(torch.tensor(STD).double(), t) - truth**2
        assert largest(told, torch.cat([means - truth, squares])) < 1e-12
        assert (float(told.abs().max()) < 1e-12) == right
        a, b = head.weight[:2], head.weight[2:]
        wanted = [-2 * b * (1 - t) ** 2 * student.scale, -(1 - t) * (a + 2 * b * means)]
        got = torch.autograd.grad((weights * losses["ladd"]).sum(), list(student.parameters()))
        assert largest(got, wanted) < 1e-12


def test_what_it_trains_and_how_it_is_sampled() -> None:
    objective = LADD(LADDConfig(steps=4, rescale_t=3.0))
    contract = objective.contract()
    assert (contract.sampler, contract.steps, contract.rescale_t) == ("consistency", (4,), 3.0)
    assert contract.times == pytest.approx([3 * u / (1 + 2 * u) for u in (1, 0.75, 0.5, 0.25)])
    batch, nets, asked = tiny_batch((2,) * 40), with_heads(1), []
    nets.student.register_forward_pre_hook(lambda _module, args: asked.extend(args[1].tolist()))
    objective.loss(batch, nets, Step(0, Interpolant()))
    assert sorted(set(asked)) == sorted(contract.grid(4)[:-1])
    spec = LADD(LADDConfig(taps=(0, 3), head_lr=3.0, head_betas=(0.0, 0.99))).networks()["discriminator"]
    assert (spec.lr_scale, spec.betas) == (3.0, (0.0, 0.99))
    build = spec.build
    assert build is not None
    with pytest.raises(FewstepError, match=r"objective\.taps.*3.*-1 to 0"):
        build(TinyBackbone())


def test_times_are_drawn_as_the_config_says_and_every_layer_has_a_head() -> None:
    nets, asked = with_heads(1), list[Tensor]()
    nets.teacher.backbone.register_forward_pre_hook(lambda _module, args: asked.append(args[1]))
    objective = LADD(LADDConfig(t=LATE))
    objective.loss(tiny_batch(), nets, Step(0, Interpolant()))
    assert float(torch.cat(asked).min()) > 0.98
    build, network = objective.networks()["discriminator"].build, ToyFlow(ToyConfig(width=8, depth=3))
    assert build is not None
    assert len(build(network).layers) == len(network.taps()) > 1  # type: ignore[arg-type]


def test_a_closed_form_has_no_inner_layers() -> None:
    with pytest.raises(FewstepError, match=r"AnalyticFlow has none.*backbone\.teacher=learned"):
        LADD(LADDConfig()).data(None, Teacher(TEACHER))  # type: ignore[arg-type]


@pytest.mark.parametrize("real", ["data", "pairs"])
def test_a_run(real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 iterations of 8 samples, of which 2 train the student: a jump, two looks of the teacher, in those 2 one back
    through it. Pairs cost more."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    run = fewstep.distill(
        "ladd",
        "toy",
        out=tmp_path / "run",
        objective={"real": real, "head_ratio": 2, "pairs": {"count": 8, "steps": 3}},
        train={"steps": 4, "batch_size": 8, "log_every": 1},
        config={"backbone": {"pretrain": 2, "width": 8}},
    )
    rows = run.metrics()
    counts = {k: (v["forward"] // 8, v["backward"] // 8) for k, v in rows[-1]["evaluations"].items()}
    assert counts == {"student": (4, 2), "teacher": (8 + (3 if real == "pairs" else 0), 2), "discriminator": (0, 0)}
    assert [list(row["grad_norm"]) for row in rows] == [["student", "discriminator"], ["discriminator"]] * 2


@pytest.mark.parametrize("backbone", ["toy", "images", "trellis"])
def test_it_has_no_momentum_on_any_backbone(backbone: str) -> None:
    for resolved in resolve_stages("ladd", backbone).values():
        assert resolved.config.train.betas == (0.0, 0.999)
