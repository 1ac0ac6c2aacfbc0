"""Several pictures of one object, against loops written out here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from fewstep_trellis.conditioning.several import several_condition, several_field
from fewstep_trellis.pipeline import sampling
from fewstep_trellis.pipeline.recipe import Recipe
from fewstep_trellis.pipeline.request import Prompt
from torch import Tensor, nn

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.errors import FewstepError

BATCH, IMAGES, TOKENS, WIDTH = 2, 3, 5, 4
GRID = [1.0, 0.9, 0.7, 0.45, 0.2, 0.0]
GUIDANCE = Guidance.strength(3.0, (0.5, 0.95))


class Flow(Backbone):
    """A velocity that depends on the state, the time and every token, not linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.calls = nn.Linear(WIDTH, WIDTH), 0

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        assert cond.tokens is not None
        assert cond.tokens.shape == (layout.batch_size, TOKENS, WIDTH)
        self.calls += 1
        c_B = cond.tokens.square().mean((1, 2)) + cond.tokens.mean((1, 2)) + t_B.to(x)
        return torch.tanh(self.mix(x)) * layout.expand(c_B, x) + x.square() * 0.1


@pytest.fixture
def flow() -> Flow:
    torch.manual_seed(0)
    return Flow().double()


def tokens() -> Tensor:
    return torch.randn(IMAGES, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def noise() -> Tensor:
    return torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def sample(field: Any, cond: Condition, x: Tensor, layout: Layout) -> Tensor:
    return euler(field, x, cond, layout, GRID, Step(0, Interpolant()))


def velocity(flow: Flow, x: Tensor, t: float, tokens_LC: Tensor) -> Tensor:
    """One sample's plain prediction."""
    return flow(x[None], torch.tensor([t], dtype=torch.float64), Condition(tokens_LC[None]), Dense(1))[0]


@torch.no_grad()
def by_hand(flow: Flow, x: Tensor, images: Tensor, mode: str) -> Tensor:
    """One sample [WIDTH], one Euler step after another, as pipeline/facts.json tells it."""
    for i in range(len(GRID) - 1):
        t, s = GRID[i], GRID[i + 1]
        used = [images[i % len(images)]] if mode == "stochastic" else list(images)
        v = sum(velocity(flow, x, t, one) for one in used) / len(used)
        if 0.5 <= t <= 0.95:
            v = (1 + 3.0) * v - 3.0 * velocity(flow, x, t, torch.zeros_like(images[0]))
        x = x - (t - s) * v
    return x


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_a_guided_flow_sees_every_picture(flow: Flow, mode: Any) -> None:
    field = several_field(flow, mode, GRID, GUIDANCE)
    found = sample(field, several_condition(tokens(), BATCH), noise(), Dense(BATCH))
    expected = torch.stack([by_hand(flow, x, tokens(), mode) for x in noise()])
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    single = sample(Teacher(flow, GUIDANCE), Condition(tokens()[:1].expand(BATCH, -1, -1)), noise(), Dense(BATCH))
    assert (found - single).abs().max() > 1e-3, "the other pictures matter"


@torch.no_grad()
def mean_of_guided(flow: Flow, x: Tensor, steps: int, mode: str) -> Tensor:
    """One sample [WIDTH]: in each step the mean over its pictures of guided velocities, each with its own negative."""
    times = [3 * t / (1 + 2 * t) for t in (1 - i / steps for i in range(steps + 1))]
    images = list(tokens())
    for i, (t, s) in enumerate(pairwise(times)):
        used = images if mode == "multidiffusion" else images[i % min(steps, IMAGES) :: steps]
        each = []
        for one in used:
            v = velocity(flow, x, t, one)
            if 0.5 <= t <= 0.95:
                v = v + 3.0 * (v - velocity(flow, x, t, torch.zeros_like(one)))
            each.append(v)
        x = x - (t - s) * sum(each) / len(each)
    return x


@pytest.mark.parametrize(
    ("mode", "steps", "calls"),
    [  # at 5 steps the times 0.92, 0.82 and 0.67 are inside the guidance interval, at 2 steps 0.75 is
        ("stochastic", 5, 5 + 3),
        ("multidiffusion", 5, 3 * 5 + 3),
        ("stochastic", 2, 2 + 1 + 1),
        ("multidiffusion", 2, 3 * 2 + 1),
    ],
)
def test_one_negative_prediction_for_all_pictures(flow: Flow, mode: str, steps: int, calls: int) -> None:
    recipe = Recipe("euler", steps, GUIDANCE, 3.0)
    found = sampling.sample(flow, recipe, noise(), Dense(BATCH), Prompt(tokens()), multi_image=mode)
    assert flow.calls == calls
    expected = torch.stack([mean_of_guided(flow, x, steps, mode) for x in noise()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_packed_latents_of_ragged_samples(flow: Flow, mode: Any) -> None:
    lengths = (1, 4)
    x = torch.randn(sum(lengths), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    index = torch.repeat_interleave(torch.arange(BATCH), torch.tensor(lengths))
    layout = Packed.of_index(index, torch.arange(sum(lengths))[:, None].expand(-1, 3))
    field = several_field(flow, mode, GRID, GUIDANCE)
    found = sample(field, several_condition(tokens(), BATCH), x, layout)
    expected = torch.stack([by_hand(flow, row, tokens(), mode) for row in x])
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_a_student_and_its_own_negative(flow: Flow) -> None:
    negative = torch.ones(TOKENS, WIDTH, dtype=torch.float64)
    cond = several_condition(tokens(), BATCH, negative)
    found = several_field(flow, "multidiffusion", GRID)(noise(), torch.full((BATCH,), 0.4), cond, Dense(BATCH))
    expected = [[velocity(flow, x, 0.4, one) for one in tokens()] for x in noise()]
    assert torch.allclose(found, torch.stack([torch.stack(row).mean(0) for row in expected]), atol=1e-12)
    empty = cond.negative().tokens
    assert empty is not None
    assert torch.equal(empty, negative.expand(BATCH, -1, -1))


@pytest.mark.parametrize(
    ("t", "image"),
    [(1.0, 0), (0.9, 1), (0.8, 1), (0.7, 2), (0.45, 0), (0.2, 1), (0.0, 1), (float(torch.tensor(0.9)), 1)],
)
def test_the_step_of_a_time(flow: Flow, t: float, image: int) -> None:
    """0.9 in single precision is less than in double: the same step."""
    field = several_field(flow, "stochastic", GRID)
    found = field(noise(), torch.full((BATCH,), t), several_condition(tokens(), BATCH), Dense(BATCH))
    expected = torch.stack([velocity(flow, x, t, tokens()[image]) for x in noise()])
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("grid", "used"),
    [([1.0, 0.0], [[0, 1, 2]]), ([1.0, 0.5, 0.0], [[0, 2], [1]]), ([1.0, 0.6, 0.3, 0.0], [[0], [1], [2]])],
)
def test_no_picture_is_left_out_in_few_steps(flow: Flow, grid: list[float], used: list[list[int]]) -> None:
    field = several_field(flow, "stochastic", grid)
    for t, pictures in zip(grid, used, strict=False):
        found = field(noise(), torch.full((BATCH,), t), several_condition(tokens(), BATCH), Dense(BATCH))
        each = [torch.stack([velocity(flow, x, t, tokens()[one]) for x in noise()]) for one in pictures]
        assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-12)


def test_one_picture_is_the_plain_field(flow: Flow) -> None:
    for mode in ("stochastic", "multidiffusion"):
        field = several_field(flow, mode, GRID, GUIDANCE)  # type: ignore[arg-type]
        found = sample(field, several_condition(tokens()[:1], BATCH), noise(), Dense(BATCH))
        plain = sample(Teacher(flow, GUIDANCE), Condition(tokens()[:1].expand(BATCH, -1, -1)), noise(), Dense(BATCH))
        assert torch.equal(found, plain)


def test_refusals(flow: Flow) -> None:
    with pytest.raises(FewstepError, match=r"unknown way to use several pictures 'multidifusion'.*did you mean"):
        several_field(flow, "multidifusion", GRID)  # type: ignore[arg-type]
    for wrong in (tokens()[:0], tokens()[0]):
        with pytest.raises(FewstepError, match="pictures of one object"):
            several_condition(wrong, BATCH)
