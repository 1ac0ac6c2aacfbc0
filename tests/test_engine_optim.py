"""Schedules, clipping, averages and accumulation against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from engine_helpers import Tiny, trainer
from pydantic import ValidationError

from fewstep.config.base import validate
from fewstep.config.train import TrainConfig
from fewstep.core.objective import NetSpec, means
from fewstep.engine.averages import ema_decay
from fewstep.engine.optim import Clipper, LRSchedule, NetOptimizer
from fewstep.engine.step import TrainStep
from fewstep.errors import FewstepError


def config(**keys: object) -> TrainConfig:
    return TrainConfig(**keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]),
    ],
)
def test_schedule_values(schedule: str, expected: list[float]) -> None:
    keys = config(steps=8, warmup=4, lr_schedule=schedule)
    assert [LRSchedule(keys)(step) for step in range(8)] == pytest.approx(expected, abs=1e-12)


def test_schedule_without_warmup_starts_at_the_full_rate_and_all_warmup_ends_there() -> None:
    assert LRSchedule(config(steps=5, lr_schedule="cosine"))(0) == 1.0
    assert LRSchedule(config(steps=5, warmup=5, lr_schedule="linear"))(4) == 1.0
    assert LRSchedule(config(steps=2, warmup=10, lr_schedule="cosine"))(1) == 0.2


def test_network_scale_multiplies_the_rate() -> None:
    optimizer = NetOptimizer(
        "critic", dict(Tiny().named_parameters()), NetSpec(lr_scale=0.5), config(lr=1e-2, steps=4, warmup=2)
    )
    optimizer.set_lr(0)
    assert optimizer.lr(0) == pytest.approx(2.5e-3)
    assert optimizer.adam.param_groups[0]["lr"] == pytest.approx(2.5e-3)


def test_a_network_may_have_betas_and_weight_decay_of_its_own() -> None:
    """After a step with gradient g, the moment is (1 - beta_1) g and the weight w (1 - lr decay) - lr sign(g)."""
    spec, keys = NetSpec(betas=(0.25, 0.5), weight_decay=0.1), config(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = NetOptimizer("critic", {"weight": weight}, spec, keys)
    weight.grad = torch.tensor([0.5, -0.4])
    optimizer.update(0, torch.amp.GradScaler("cpu", enabled=False))
    assert optimizer.state()["moments/weight/exp_avg"].tolist() == pytest.approx([0.375, -0.3])
    assert optimizer.state()["moments/weight/exp_avg_sq"].tolist() == pytest.approx([0.125, 0.08])
    assert weight.tolist() == pytest.approx([2 * 0.999 - 0.01, -3 * 0.999 + 0.01], abs=1e-6)
    plain = NetOptimizer("student", {"weight": weight}, NetSpec(), keys)
    assert plain.adam.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 95.0])
def test_adaptive_limit_is_numpys_percentile_of_the_last_norms(percentile: float) -> None:
    clipper = Clipper(config(clip="adaptive", clip_norm=1.5, clip_percentile=percentile, clip_buffer=7))
    norms = np.random.default_rng(0).uniform(0.5, 2.5, 40)
    for seen, norm in enumerate(norms):
        expected = 1.5 if seen < 7 else min(1.5, np.percentile(norms[seen - 7 : seen], percentile))
        assert float(clipper.limit) == pytest.approx(expected, abs=1e-12)
        clipper.record(torch.tensor(norm))


def test_adaptive_buffer_skips_overflows_and_other_kinds_keep_none() -> None:
    clipper = Clipper(config(clip="adaptive", clip_buffer=2))
    for norm in (1.0, math.inf, math.nan, 3.0):
        clipper.record(torch.tensor(norm))
    assert clipper.norms == [1.0, 3.0]
    plain = Clipper(config(clip="norm", clip_norm=0.3))
    plain.record(torch.tensor(1.0))
    assert (plain.limit, plain.norms, Clipper(config(clip="none")).limit) == (0.3, [], math.inf)


@pytest.mark.parametrize(("clip", "after"), [("none", 5.0), ("norm", 1.0)])
def test_clipping_scales_the_gradient_and_reports_its_norm_before(clip: str, after: float) -> None:
    net = torch.nn.Linear(1, 1)
    net.weight.grad, net.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    optimizer = NetOptimizer("student", dict(net.named_parameters()), NetSpec(), config(clip=clip, clip_norm=1.0))
    assert float(optimizer.clip()) == pytest.approx(5.0)
    assert [float(net.weight.grad), float(net.bias.grad)] == pytest.approx([0.6 * after, 0.8 * after], rel=1e-4)


def test_a_buffer_that_was_read_back_half_full_goes_on_as_it_was() -> None:
    keys = config(clip="adaptive", clip_norm=10.0, clip_buffer=3)
    first, again = Clipper(keys), Clipper(keys)
    for norm in (1.0, 2.0):
        first.record(torch.tensor(norm))
    again.norms = first.norms
    for norm, limit in ((4.0, 10.0), (5.0, 3.8), (6.0, 4.9)):  # percentile 95 of 1, 2, 4 and of 2, 4, 5
        assert (float(first.limit), float(again.limit)) == pytest.approx((limit, limit))
        for clipper in (first, again):
            clipper.record(torch.tensor(norm))


def test_adaptive_clipping_is_by_the_norms_before_this_one() -> None:
    """Of three updates the first two fill the buffer; the third is scaled to their median, which leaves itself out."""
    weight, after = torch.nn.Parameter(torch.zeros(2)), []
    keys = config(clip="adaptive", clip_norm=10.0, clip_percentile=50.0, clip_buffer=2)
    optimizer = NetOptimizer("student", {"weight": weight}, NetSpec(), keys)
    for norm in (1.0, 3.0, 8.0, 3.0):
        weight.grad = torch.tensor([0.6 * norm, 0.8 * norm])
        optimizer.clip()
        after.append(float(weight.grad.norm()))
    assert after == pytest.approx([1.0, 3.0, 2.0, 3.0], rel=1e-4)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_follows_its_formula(warmup: bool) -> None:
    run = trainer(ema=(0.8, 0.3), lr=0.05, steps=12, ema_warmup=warmup)
    kept = {rate: [p.detach().double().clone() for p in run.nets.view.student.parameters()] for rate in (0.8, 0.3)}

    def log(row: dict[str, object]) -> None:
        updates = int(str(row["step"]))
        for rate, values in kept.items():
            decay = min(rate, (1 + updates) / (10 + updates)) if warmup else rate
            for value, new in zip(values, run.nets.view.student.parameters(), strict=True):
                value.mul_(decay).add_((1 - decay) * new.detach().double())

    run.train(log, lambda: None)
    for rate, values in kept.items():
        for value, ours in zip(values, run.nets.view.ema("student", rate).parameters(), strict=True):
            torch.testing.assert_close(ours.double(), value, rtol=0, atol=1e-6)


def test_ema_keeps_its_rate_unless_warm_up_is_asked_for() -> None:
    assert [ema_decay(0.9999, n, False) for n in (1, 6000)] == [0.9999, 0.9999]
    assert [ema_decay(0.999, n, True) for n in (1, 10_000)] == [2 / 11, 0.999]
    assert ema_decay(0.1, 1, True) == 0.1


def test_accumulated_gradient_is_the_mean_of_the_micro_batches() -> None:
    run = trainer(batch_size=4, accumulate=3, clip="none")
    expected = [torch.zeros_like(p) for p in run.nets.view.student.parameters()]
    for micro in range(3):
        phase = run.objective.phase(0)
        losses = means(run.gradients.terms(phase, run.reader.batch(0, micro), TrainStep(run, phase, 0, micro)))
        parts = torch.autograd.grad(sum(losses.values()), list(run.nets.view.student.parameters()))  # type: ignore[arg-type]
        expected = [total + part / 3 for total, part in zip(expected, parts, strict=True)]
    run.gradients.accumulate(run.objective.phase(0), 0)
    for parameter, value in zip(run.nets.view.student.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, value, rtol=1e-5, atol=1e-8)


def test_micro_batches_cover_what_one_large_batch_covers_with_draws_of_their_own() -> None:
    small, large = trainer(batch_size=4, accumulate=2), trainer(batch_size=8)
    seen: list[list[int]] = []
    for run in (small, large):
        run.dataset.batch = lambda indices, generator: seen.append(indices)  # type: ignore[assignment, method-assign]
    for step in (0, 3):
        seen.clear()
        for micro in range(2):
            small.dataset.training_batch(step, 4, 0, rank=micro, ranks=2)
        large.dataset.training_batch(step, 8, 0)
        assert seen[0] + seen[1] == seen[2]
    steps = [TrainStep(small, small.objective.phase(0), 0, micro) for micro in range(2)]
    noise = [step.randn_like(torch.zeros(4), "noise") for step in steps]
    assert not torch.equal(*noise)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"ema": (1.0,)}, "ema"),
        ({"clip": "percentile"}, "clip"),
        ({"export": "ema"}, "export: got 'ema'; accepted: 'student' or the rate of an EMA"),
        ({"export": 1.5}, "export: got 1.5; accepted: 'student' or the rate of an EMA"),
        ({"keep": 0}, "keep"),
    ],
)
def test_keys_out_of_bounds_are_refused(keys: dict[str, object], text: str) -> None:
    with pytest.raises(FewstepError) as caught:
        validate(TrainConfig, keys)
    assert text in str(caught.value)


def test_config_is_frozen_and_every_key_has_a_description() -> None:
    with pytest.raises(ValidationError):
        config().steps = 3  # type: ignore[misc]
    assert all(info.description for info in TrainConfig.model_fields.values())
