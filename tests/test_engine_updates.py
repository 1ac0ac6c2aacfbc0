"""What one update of a network is made of: the rate in force, AdamW by hand, clipping, averages, random state."""

from __future__ import annotations

import math
from typing import Any

import engine_helpers
import pytest
import torch
from engine_helpers import Regress, Tiny, TinyConfig, trainer
from torch import Tensor, nn

from fewstep.config.train import TrainConfig
from fewstep.core.objective import NetSpec
from fewstep.engine.networks import Networks
from fewstep.engine.optim import NetOptimizer


def test_adamw_by_hand() -> None:
    """Loshchilov and Hutter 2019: p (1 - lr wd) - lr m / (sqrt(v) + eps), both moments corrected for their start."""
    first, second, lr, decay = 0.7, 0.8, 0.1, 0.05
    config = TrainConfig(lr=lr, betas=(first, second), weight_decay=decay, clip="none")
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = NetOptimizer("student", {"weight": weight}, NetSpec(), config)
    p, m, v = weight.detach().clone(), torch.zeros(2), torch.zeros(2)
    for step, gradient in enumerate(
        (torch.tensor([0.3, -0.1]), torch.tensor([-0.2, 0.4]), torch.tensor([0.1, 0.1])), 1
    ):
        weight.grad = gradient.double()
        optimizer.set_lr(step)
        optimizer.adam.step()
        m, v = first * m + (1 - first) * gradient, second * v + (1 - second) * gradient.square()
        p = p * (1 - lr * decay)
        p = p - lr * (m / (1 - first**step)) / ((v / (1 - second**step)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach(), p, rtol=1e-6, atol=0)


def test_each_update_is_made_at_its_own_rate() -> None:
    run, used = trainer(lr=1e-2, warmup=3, lr_schedule="linear", steps=6), []
    adam = run.optimizers["student"].adam
    adam.register_step_pre_hook(lambda *_: used.append(adam.param_groups[0]["lr"]))
    rows: list[dict[str, Any]] = []
    run.train(rows.append, lambda: None)
    assert used == pytest.approx([1e-2 * share for share in (1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3)])
    assert [row["lr"]["student"] for row in rows] == pytest.approx(used)


def test_adaptive_clipping_remembers_norms_as_they_were_before() -> None:
    weight = nn.Parameter(torch.zeros(2))
    config = TrainConfig(clip="adaptive", clip_norm=1.0, clip_buffer=4)
    optimizer = NetOptimizer("student", {"weight": weight}, NetSpec(), config)
    for size in (3.0, 0.5):
        weight.grad = torch.tensor([size, 0.0])
        optimizer.clip()
    assert optimizer.clipper.norms == [3.0, 0.5]


def test_gradients_are_unscaled_before_they_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    run, order = trainer(steps=1), []
    optimizer = run.optimizers["student"]
    unscale, clip = run.scaler.unscale_, optimizer.clip
    monkeypatch.setattr(run.scaler, "unscale_", lambda adam: (order.append("unscale"), unscale(adam)))
    monkeypatch.setattr(optimizer, "clip", lambda: (order.append("clip"), clip())[1])
    run.train(lambda _: None, lambda: None)
    assert order == ["unscale", "clip"]


def test_averages_move_with_their_own_network_alone() -> None:
    """Of three iterations one trains the student and two its critic: the student's average moves once."""
    run = trainer("tiny-critic", steps=3, ema=(0.5,), ema_warmup=True)
    before = [p.detach().clone() for p in run.nets.view.student.parameters()]
    run.train(lambda _: None, lambda: None)
    assert run.nets.averages.updates == {"student": 1, "critic": 2}
    decay = 2 / 11  # of the first update under warm-up, below both rates
    for rate in (0.9, 0.5):
        average = run.nets.view.ema("student", rate).parameters()
        for kept, old, new in zip(average, before, run.nets.view.student.parameters(), strict=True):
            torch.testing.assert_close(kept, decay * old + (1 - decay) * new.detach())


def test_buffers_of_an_average_are_those_of_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counts(Tiny):
        def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
            super().__init__(width, dropout)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            if self.training:
                self.calls += 1
            return super().forward(*args, **kwargs)

    monkeypatch.setitem(engine_helpers.BACKBONES, "counts", Counts)
    run = trainer("tiny-regress", "counts", steps=4, ema=(0.9,))
    run.train(lambda _: None, lambda: None)
    assert float(run.nets.view.student.calls) == 4  # it trains in training mode
    assert float(run.nets.view.ema("student", 0.9).calls) == 4
    assert float(run.teacher.backbone.calls) == 0


def test_torchs_own_draws_follow_from_seed_step_and_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[int, int, int], float] = {}

    class Draws(Regress):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            seen[step.seed, step.index, step.rank] = float(torch.rand(()))
            return super().loss(batch, nets, step)

    monkeypatch.setitem(engine_helpers.OBJECTIVES, "draws", Draws)
    for seed in (0, 1):
        trainer("draws", steps=2, accumulate=2, seed=seed).train(lambda _: None, lambda: None)
    assert len(set(seen.values())) == len(seen) == 8
    first = dict(seen)
    again = trainer("draws", steps=2, accumulate=2, seed=0)
    torch.manual_seed(123)
    again.train(lambda _: None, lambda: None)
    assert seen == first


def test_built_networks_are_drawn_from_seed_and_name() -> None:
    specs = {"student": NetSpec(), **{name: NetSpec(build=lambda _: nn.Linear(3, 1)) for name in ("a", "b")}}

    def weights(seed: int) -> list[list[float]]:
        torch.manual_seed(torch.seed())
        nets = Networks(specs, Tiny.teacher(TinyConfig()), torch.device("cpu"), seed=seed)
        return [nets.trained[name].weight.flatten().tolist() for name in ("a", "b")]

    first, second = weights(0), weights(1)
    assert first == weights(0)
    assert first[0] != first[1]
    assert first[0] != second[0]


def test_the_schedule_of_an_objective_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = []

    class Ahead(Regress):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            totals.append((step.index, step.total))
            return super().loss(batch, nets, step)

    monkeypatch.setitem(engine_helpers.OBJECTIVES, "ahead", Ahead)
    run = trainer("ahead", steps=3)
    run.train(lambda _: None, lambda: None)
    assert totals == [(0, 3), (1, 3), (2, 3)]
    assert math.isfinite(run.seconds)
