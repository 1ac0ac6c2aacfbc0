"""The toy student: an MLP on points with one or two time inputs, fitted to the exact velocity beforehand."""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.mixture import Mixture
from fewstep.core.policy import POINTS, average, repeated
from fewstep.errors import FewstepError, unknown
from fewstep_toy.analytic import AnalyticFlow
from fewstep_toy.config import ToyConfig
from fewstep_toy.mixture import TARGETS, expand_rows

if TYPE_CHECKING:
    from fewstep.core.dataset import Dataset
    from fewstep.core.suite import Suite

FREQUENCIES = 4
FIT_BATCH, FIT_LR, FIT_UNCOND = 512, 3e-3, 0.2


class ToyFlow(Backbone):
    """An MLP for the velocity of points [B, 2], [B, P, 2] or packed [T, 2], applied to each point separately.

    The second time enters through features of t - s that vanish at 0: without ``s_B`` the network is that of s = t.
    """

    Config = ToyConfig
    provides: ClassVar[frozenset[str]] = frozenset(
        {"dense", "packed", "jvp", "two_time", "negative_time", "features", "guidance_input", "policy"}
    )
    dataset = "toy"
    made_from = frozenset({"target", "conditional", "sigma_min", "width", "depth", "pretrain", "seed"})

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config, self.interpolant = config, Interpolant(config.sigma_min)
        self.strength_channels = config.width
        target = TARGETS[config.target]()
        self.condition_width = target.class_count if config.conditional else 0
        times = 1 + 2 * FREQUENCIES
        self.first = nn.Linear(2 + times + self.condition_width, config.width)
        self.jump = nn.Linear(1 + FREQUENCIES, config.width, bias=False)
        nn.init.zeros_(self.jump.weight)
        hidden = [m for _ in range(config.depth - 1) for m in (nn.Linear(config.width, config.width), nn.SiLU())]
        self.rest = nn.Sequential(nn.SiLU(), *hidden, nn.Linear(config.width, 2 * config.points))

    @property
    def mixture(self) -> Mixture:
        return TARGETS[self.config.target]()

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        parts = [x, expand_rows(time_features(t_B), x, layout)]
        if self.condition_width:
            parts.append(expand_rows(self._tokens(cond, layout, x), x, layout))
        h = self.first(torch.cat(parts, -1))
        if s_B is not None and self.config.points == 1:
            h = h + self.jump(expand_rows(span_features(t_B - s_B), x, layout))
        if (strength := self.strength_of(cond)) is not None:
            h = h + expand_rows(strength, x, layout)
        outputs: Tensor = self.rest(h)
        if self.config.points > 1:
            return average(outputs.unflatten(-1, (-1, 2)).movedim(-2, 0), t_B, s_B, layout)
        return outputs

    def student(self, needs: frozenset[str] = frozenset()) -> Backbone:
        """A copy. For a policy, one with more outputs, each of which starts as the velocity."""
        student = cast(ToyFlow, super().student(needs))
        if "policy" in needs and self.config.points == 1:
            student.config = self.config.model_copy(update={"points": POINTS})
            student.rest[-1] = repeated(cast(nn.Linear, self.rest[-1]))
        return student

    def taps(self) -> list[tuple[nn.Module, int]]:
        return [(layer, self.config.width) for layer in self.rest if isinstance(layer, nn.SiLU)]

    def shard_units(self) -> list[nn.Module]:
        return [layer for layer in self.rest if isinstance(layer, nn.Linear)]

    def _tokens(self, cond: Condition, layout: Layout, x: Tensor) -> Tensor:
        if cond.tokens is None:
            return x.new_zeros(layout.batch_size, self.condition_width)
        if cond.tokens.shape != (layout.batch_size, self.condition_width):
            wanted = [layout.batch_size, self.condition_width]
            raise FewstepError(f"backbone 'toy' takes condition tokens {wanted}, got {list(cond.tokens.shape)}")
        return cond.tokens

    @classmethod
    def check_config(cls, config: ToyConfig) -> None:
        if isinstance(config.teacher, Path):
            raise unknown("backbone.teacher", str(config.teacher), ("analytic", "learned", "a run of fewstep teach"))

    @classmethod
    def teacher(cls, config: ToyConfig) -> Teacher:
        cls.check_config(config)
        backbone = AnalyticFlow(config) if config.teacher == "analytic" else fitted(config)
        return backbone.as_teacher(config)

    @classmethod
    def measures(cls, dataset: type[Dataset]) -> bool:
        from fewstep_toy.dataset import ToyPoints

        return issubclass(dataset, ToyPoints)

    @classmethod
    def suite(cls, config: Any, dataset: Dataset) -> Suite | None:
        from fewstep_toy.dataset import ToyPoints
        from fewstep_toy.suite import ToySuite

        return ToySuite(dataset) if isinstance(dataset, ToyPoints) else None


def time_features(t_B: Tensor) -> Tensor:
    """[B] -> [B, 9]: t and its first sines and cosines over [0, 2)."""
    angles = math.pi * t_B[:, None] * torch.arange(1, FREQUENCIES + 1, device=t_B.device)
    return torch.cat([t_B[:, None], angles.sin(), angles.cos()], 1)


def span_features(span_B: Tensor) -> Tensor:
    """[B] -> [B, 5]: features of t - s that are 0 at s = t."""
    angles = math.pi * span_B[:, None] * torch.arange(1, FREQUENCIES + 1, device=span_B.device)
    return torch.cat([span_B[:, None], angles.sin()], 1)


def fitted(config: ToyConfig) -> ToyFlow:
    """A student that already approximates the target's velocity; fitted once per process and config."""
    return copy.deepcopy(_fit(ToyConfig(**config.model_dump(include=set(ToyFlow.made_from)))))


@lru_cache(maxsize=16)
def _fit(config: ToyConfig) -> ToyFlow:
    """Regression on the exact velocity: flow matching without the variance of its target."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(config.seed)
        model, generator = ToyFlow(config), torch.Generator().manual_seed(config.seed)
        adam = torch.optim.Adam(model.parameters(), FIT_LR)
        for i in range(config.pretrain):
            adam.param_groups[0]["lr"] = FIT_LR * 0.5 * (1 + math.cos(math.pi * i / config.pretrain))
            adam.zero_grad()
            _fit_loss(model, AnalyticFlow(config), generator).backward()
            adam.step()
    return model


def _fit_loss(model: ToyFlow, exact: AnalyticFlow, generator: torch.Generator) -> Tensor:
    mixture, layout = exact.mixture, Dense(FIT_BATCH)
    labels = mixture.draw_labels(FIT_BATCH, generator)
    x0 = mixture.sample(labels, generator)
    t_B = torch.rand(FIT_BATCH, generator=generator)
    x_t = exact.interpolant.interpolate(x0, torch.randn(x0.shape, generator=generator), t_B, layout)
    cond = Condition()
    if model.condition_width:
        one_hot = torch.nn.functional.one_hot(labels, model.condition_width).to(x0.dtype)
        cond = Condition(one_hot).dropped(torch.rand(FIT_BATCH, generator=generator) < FIT_UNCOND)
    error: Tensor = model(x_t, t_B, cond, layout) - exact(x_t, t_B, cond, layout)
    return error.square().mean()
