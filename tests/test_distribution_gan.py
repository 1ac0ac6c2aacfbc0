"""The adversarial head and f-distill: against the papers' formulas, divergences in closed form, and the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from closed_forms import Given, exact_nets, gradients, largest, total
from distribution_helpers import (
    DROPPED,
    MEAN,
    STD,
    TEACHER,
    ExactCritic,
    LinearStudent,
    drawn,
    logit,
    noisy,
    objective_of,
    quadrature,
    tiny_nets,
    told,
)
from fewstep_distribution.config import DMD2Config, FDistillConfig
from fewstep_distribution.dmd2 import DMD2
from fewstep_distribution.f_distill import WEIGHTS, FDistill
from fewstep_distribution.gan import Head
from fewstep_distribution.sid import SiD
from fewstep_toy.config import ToyConfig
from fewstep_toy.network import ToyFlow
from torch import Tensor, nn
from torch.nn.functional import softplus

from fewstep.config.resolve import check_needs
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Nets, Step
from fewstep.engine.budget import Budget
from fewstep.errors import FewstepError
from fewstep.testing import TinyBackbone, check_objective, tiny_batch


@pytest.mark.parametrize(
    ("cls", "keys"),
    [
        (DMD2, {"gan": 0.1, "steps": 2, "critic_ratio": 2, "reduction": "sample"}),
        (FDistill, {}),
        (FDistill, {"divergence": "jensen-shannon", "gan": 0.0, "p_uncond": 0.5}),
    ],
)
def test_conformance(cls: type[Any], keys: dict[str, Any]) -> None:
    check_objective(cls, cls.Config(**keys))


@pytest.mark.parametrize("lengths", [(4, 4, 4), (2, 5, 1)])
def test_the_adversarial_terms(lengths: tuple[int, ...]) -> None:
    """softplus(-D) of noisy fakes for the student; softplus(D) of those and softplus(-D) of noisy data for the head."""
    batch, nets = tiny_batch(lengths, packed=lengths[0] != lengths[1]), tiny_nets()
    head, draws = Head([16]).double(), drawn(batch)
    nets = Nets({**nets._modules, "head": head}, {})
    losses = objective_of(DMD2, gan=0.3, gan_critic=0.2, p_uncond=DROPPED).loss(batch, nets, Given(draws))
    misled, found_out = [], []
    for i in range(len(lengths)):

        def of(values: Tensor, row: int = i) -> Tensor:
            return batch.layout.select(values, torch.tensor([row]))[0].reshape(-1, 3)

        z, data, cond = of(draws["noise_fake"]), of(batch.x0), told(batch, draws, i)
        x = z - nets.student(z[None], torch.ones(1, dtype=torch.float64), cond, Dense(1))[0]

        def noised(x: Tensor, name: str, cond: Condition = cond, row: int = i) -> Tensor:
            t = float(draws[f"t/{name}"][row])
            return logit(nets.critic, head, (1 - t) * x + t * of(draws[f"noise/{name}"], row), t, cond)

        misled.append(0.3 * softplus(-noised(x, "gan")))
        found_out.append(0.2 * (softplus(noised(x.detach(), "fakes")) + softplus(-noised(data, "fakes"))))
    trained = [nets.student, nets.critic, head]
    parameters = [p for network in trained for p in network.parameters()]
    for name, parts in (("gan", misled), ("head", found_out)):
        value = torch.stack(parts).mean()
        assert largest(total({name: losses[name]}), value) < 1e-12
        reached = list(nets.student.parameters()) if name == "gan" else parameters
        wanted, got = (
            torch.autograd.grad(of, some, allow_unused=True, materialize_grads=True)
            for of, some in ((value, reached), (total({name: losses[name]}), parameters))
        )
        rest = [torch.zeros_like(p) for p in parameters[len(reached) :]]
        assert largest(got, [*wanted, *rest]) < 1e-12
        assert max(float(g.abs().max()) for g in wanted) > 0


def test_the_critics_term_is_the_same_with_a_head() -> None:
    batch, nets = tiny_batch((2, 5, 1), packed=True), tiny_nets()
    given = Nets({**nets._modules, "head": Head([16]).double()}, {})
    for reduction in ("element", "sample"):
        plain, headed = (
            objective_of(DMD2, gan=gan, reduction=reduction).loss(batch, given, Given(drawn(batch)))["critic"]
            for gan in (0.0, 0.3)
        )
        assert largest(headed, plain) < 1e-12


DIVERGENCES = {
    "forward-kl": lambda r: r * r.log(),
    "jensen-shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "softened-reverse-kl": lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
    "hellinger": lambda r: 2 * (1 - r.sqrt()) ** 2,
    "jeffreys": lambda r: (r - 1) * r.log(),
}


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_weights_are_the_second_derivatives_of_their_divergences(name: str) -> None:
    """h(r) = r^2 f''(r)."""
    r = torch.linspace(0.1, 20, 50, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(DIVERGENCES[name](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    assert largest(WEIGHTS[name](r), r**2 * second) < 1e-9


class RatioCritic(ExactCritic):
    """Its features are the exact log ratio of data and fakes, coordinate by coordinate."""

    def features(
        self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, taps: Sequence[int] = (-1,)
    ) -> tuple[Tensor, list[Tensor]]:
        t = float(t_B[0])
        parts = []
        for mean, scale in ((MEAN, torch.tensor(STD).double()), (self.mean, self.scale)):
            variance = noisy(scale, t)
            parts.append(-0.5 * ((x - (1 - t) * mean) ** 2 / variance + torch.log(variance)))
        return self(x, t_B, cond, layout), [parts[0] - parts[1]]


class Summed(nn.Module):
    def forward(self, features: list[Tensor], layout: Layout) -> Tensor:
        return layout.sum(features[0])


@pytest.mark.parametrize("t", [0.4, 0.7])
def test_with_an_exact_head_the_gradient_is_that_of_the_forward_divergence(t: float) -> None:
    """E_fakes[r (score difference) dx_t] is the gradient of KL(target || fakes) of the noised Gaussians; the factor of
    reverse KL, t^2 / (1 - t)^2, is that of test_distribution."""
    student = LinearStudent((0.6, 0.45), (0.8, -0.6))
    z, eps, weights = quadrature(12)
    batch, times = Batch(z, Dense(len(z))), torch.full((len(z),), t, dtype=torch.float64)
    nets = Nets({**exact_nets(student)._modules, "critic": RatioCritic(student), "head": Summed()}, {})
    draws = {"noise_fake": z, **{f"noise/{name}": eps for name in ("dmd", "gan", "fakes")}}
    draws |= {f"t/{name}": times for name in ("dmd", "gan", "fakes")}
    objective = objective_of(FDistill, reduction="sample", clip=(1e-12, 1e12))
    found = objective.loss(batch, nets, Given(draws))["dmd"]
    x_t = (1 - t) * (student.scale * z + student.mean).detach() + t * eps
    x, real = (student.scale * z + student.mean).detach(), x_t - t * TEACHER(x_t, times, Condition(), batch.layout)
    got = torch.autograd.grad((weights * (x - real).abs().mean(1) * 2 * found).sum(), list(student.parameters()))
    wide, narrow = noisy(student.scale, t), noisy(torch.tensor(STD).double(), t)
    kl = 0.5 * (torch.log(wide / narrow) + (narrow + ((1 - t) * (student.mean - MEAN)) ** 2) / wide - 1).sum()
    wanted = [t**2 / (1 - t) ** 2 * g for g in torch.autograd.grad(kl, list(student.parameters()))]
    assert largest(got, wanted) < 1e-6 * max(float(g.abs().max()) for g in wanted)


def test_the_ratio_is_the_heads_at_the_noisy_fake() -> None:
    """Sample by sample the gradient is DMD2's times h, here sqrt(exp(logit))."""
    batch, nets, head = tiny_batch(), tiny_nets(), Head([16]).double()
    nets, draws = Nets({**nets._modules, "head": head}, {}), drawn(batch)
    keys = {"reduction": "sample", "p_uncond": DROPPED}
    methods = (objective_of(DMD2, **keys), objective_of(FDistill, divergence="hellinger", clip=(1e-9, 1e9), **keys))
    plain, ours = (method.loss(batch, nets, Given(draws))["dmd"] for method in methods)
    for i in range(3):
        z, eps, t = draws["noise_fake"][i], draws["noise/dmd"][i], float(draws["t/dmd"][i])
        cond = told(batch, draws, i)
        x = z - nets.student(z[None], torch.ones(1, dtype=torch.float64), cond, Dense(1))[0]
        h = (logit(nets.critic, head, ((1 - t) * x + t * eps).reshape(-1, 3), t, cond) / 2).exp().detach()
        without, found = (
            torch.autograd.grad(term[i], list(nets.student.parameters()), retain_graph=True) for term in (plain, ours)
        )
        assert largest(found, [h * g for g in without]) < 1e-12
        assert abs(float(h) - 1) > 1e-3


@pytest.mark.parametrize(("sure", "clip", "double"), [(50.0, (0.1, 2.0), (0.1, 4.0)), (-50.0, (0.1, 2.0), (0.2, 2.0))])
def test_the_ratio_is_clipped(sure: float, clip: tuple[float, float], double: tuple[float, float]) -> None:
    """Where the head is sure, h is that of a bound."""
    nets, batch = tiny_nets(), tiny_batch()

    class Sure(nn.Module):
        def forward(self, features: list[Tensor], layout: Layout) -> Tensor:
            return torch.full((layout.batch_size,), sure, dtype=torch.float64)

    losses = {}
    for label, bounds in (("clipped", clip), ("double", double)):
        given = Nets({**nets._modules, "head": Sure()}, {})
        objective = objective_of(FDistill, clip=bounds, gan=0.0)
        losses[label] = gradients({"dmd": objective.loss(batch, given, Given(drawn(batch)))["dmd"]}, nets.student)
    assert largest(losses["double"], [2 * g for g in losses["clipped"]]) < 1e-12
    assert max(float(g.abs().max()) for g in losses["clipped"]) > 1e-3


@pytest.mark.parametrize("backbone", [TinyBackbone(), ToyFlow(ToyConfig(width=8, depth=3))])
def test_features_come_with_the_velocity_and_count_as_one_pass(backbone: Backbone) -> None:
    budget = Budget()
    budget.watch("critic", backbone)
    layers, channels = backbone.taps(), 3 if isinstance(backbone, TinyBackbone) else 2
    x, t_B = torch.randn(4, channels), torch.full((4,), 0.5)
    v, features = backbone.features(x, t_B, Condition(), Dense(4), range(len(layers)))
    assert [h.shape[-1] for h in features] == [width for _, width in layers]
    features[0].sum().backward()
    assert torch.equal(v, backbone(x, t_B, Condition(), Dense(4)))  # and the hooks are gone
    assert budget.snapshot()["critic"] == {"forward": 8, "tangent": 0, "backward": 4}


def test_refusals() -> None:
    class Closed(Backbone):
        provides = frozenset({"dense"})

    for config, cls in ((DMD2Config(gan=0.1), DMD2), (FDistillConfig(), FDistill)):
        with pytest.raises(FewstepError, match=r"(?s)needs 'features'.*'Closed'"):
            check_needs(cls(config), Closed, method="m")  # type: ignore[arg-type]
    check_needs(DMD2(DMD2Config()), Closed, method="m")
    assert SiD.needs == DMD2.needs == frozenset()
    networks = DMD2(DMD2Config(gan=0.1, taps=(0, 3), head_lr=3.0, head_betas=(0.0, 0.99))).networks()
    assert (networks["head"].betas, networks["critic"].betas) == ((0.0, 0.99), None)
    assert (networks["head"].lr_scale, networks["critic"].lr_scale) == (3.0, 1.0)
    build = networks["head"].build
    assert build is not None
    with pytest.raises(FewstepError, match=r"objective\.taps.*3.*-1 to 0"):
        build(TinyBackbone())


def test_without_a_head_nothing_of_it_is_left() -> None:
    objective = objective_of(DMD2)
    assert list(objective.networks()) == ["student", "critic"]
    assert set(objective.loss(tiny_batch(), tiny_nets(), Step(0, TinyBackbone().interpolant))) == {"dmd", "critic"}
    assert objective_of(DMD2, gan=0.1).phase(0).trains == ("student", "critic", "head")
