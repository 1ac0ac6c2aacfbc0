"""The student: a residual network on pixels, modulated by time and digit, with one or two time inputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Condition
from fewstep.core.layout import Layout
from fewstep.core.policy import POINTS, average, repeated
from fewstep.errors import FewstepError, unknown
from fewstep_images.config import ImagesConfig
from fewstep_images.exact import ExactFlow
from fewstep_images.sources import CLASSES, SIDES

if TYPE_CHECKING:
    from fewstep.core.dataset import Dataset
    from fewstep.core.suite import Suite

FREQUENCIES = 4  # up to 4 pi: high frequencies would make dF/dt ill-conditioned


class Block(nn.Module):
    """h + gate * MLP((1 + scale) * LayerNorm(h) + shift), modulated by time and digit (adaLN of DiT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, facts: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(facts).chunk(3, -1)
        return cast(Tensor, h + gate * self.layers((1 + scale) * self.norm(h) + shift))


class ImageFlow(Backbone):
    """Velocity of images [B, P] with an optional one-hot digit [B, 10].

    The output includes a multiple of x, with a factor from time and digit: the hidden layers have too few units to
    carry noise in all its dimensions. The second time enters through features of t - s that vanish at 0: without
    ``s_B`` the network is that of s = t.
    """

    Config = ImagesConfig
    provides: ClassVar[frozenset[str]] = frozenset(
        {"dense", "jvp", "two_time", "negative_time", "features", "guidance_input", "policy"}
    )
    dataset = "images"
    made_from = frozenset({"source", "smoothing", "conditional", "width", "depth", "pretrain", "seed"})

    def __init__(self, config: ImagesConfig) -> None:
        super().__init__()
        self.config, self.strength_channels = config, config.width
        pixels, width = SIDES[config.source] ** 2, config.width
        self.first = nn.Linear(pixels, width)
        self.time = nn.Linear(1 + 2 * FREQUENCIES, width)
        self.jump = nn.Linear(1 + FREQUENCIES, width, bias=False)
        nn.init.zeros_(self.jump.weight)
        self.digit = nn.Linear(CLASSES, width, bias=False)
        self.facts = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.depth))
        self.last = nn.Linear(width, pixels * config.points)
        self.through = nn.Linear(width, 1)

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        t_B = t_B.to(x.dtype)
        facts = self.time(time_features(t_B)) + self.digit(self._tokens(cond, layout, x))
        if s_B is not None and self.config.points == 1:
            facts = facts + self.jump(span_features(t_B - s_B.to(x.dtype)))
        if (strength := self.strength_of(cond)) is not None:
            facts = facts + strength
        facts, h = self.facts(facts), self.first(x)
        for block in self.blocks:
            h = block(h, facts)
        outputs: Tensor = self.last(h).unflatten(-1, (self.config.points, -1)).movedim(-2, 0) + self.through(facts) * x
        return average(outputs, t_B, s_B, layout) if self.config.points > 1 else outputs[0]

    def student(self, needs: frozenset[str] = frozenset()) -> Backbone:
        """A copy. For a policy, one with more outputs, each of which starts as the velocity."""
        student = cast(ImageFlow, super().student(needs))
        if "policy" in needs and self.config.points == 1:
            student.config = self.config.model_copy(update={"points": POINTS})
            student.last = repeated(self.last)
        return student

    def taps(self) -> list[tuple[nn.Module, int]]:
        return [(block, self.config.width) for block in self.blocks]

    def _tokens(self, cond: Condition, layout: Layout, x: Tensor) -> Tensor:
        if cond.tokens is None:
            return x.new_zeros(layout.batch_size, CLASSES)
        if cond.tokens.shape != (layout.batch_size, CLASSES):
            wanted = [layout.batch_size, CLASSES]
            raise FewstepError(f"backbone 'images' takes condition tokens {wanted}, got {list(cond.tokens.shape)}")
        return cond.tokens

    @classmethod
    def check_config(cls, config: ImagesConfig) -> None:
        if isinstance(config.teacher, Path):
            raise unknown("backbone.teacher", str(config.teacher), ("exact", "learned", "a run of fewstep teach"))

    @classmethod
    def teacher(cls, config: ImagesConfig) -> Teacher:
        """The exact velocity, or the network trained on the images.

        Raises:
            FewstepError: if the package with the images is not installed.
        """
        from fewstep_images.fitting import fitted

        cls.check_config(config)
        backbone = ExactFlow(config) if config.teacher == "exact" else fitted(config)
        return backbone.as_teacher(config)

    @classmethod
    def measures(cls, dataset: type[Dataset]) -> bool:
        from fewstep_images.dataset import SmoothedImages

        return issubclass(dataset, SmoothedImages)

    @classmethod
    def suite(cls, config: Any, dataset: Dataset) -> Suite | None:
        from fewstep_images.dataset import SmoothedImages
        from fewstep_images.suite import ImageSuite

        return ImageSuite(dataset) if isinstance(dataset, SmoothedImages) else None


def time_features(t_B: Tensor) -> Tensor:
    """[B] -> [B, 9]: t and its first sines and cosines over [0, 2)."""
    angles = _angles(t_B)
    return torch.cat([t_B[:, None], angles.sin(), angles.cos()], 1)


def span_features(span_B: Tensor) -> Tensor:
    """[B] -> [B, 5]: features of t - s that are 0 at s = t."""
    return torch.cat([span_B[:, None], _angles(span_B).sin()], 1)


def _angles(t_B: Tensor) -> Tensor:
    return math.pi * t_B[:, None] * torch.arange(1, FREQUENCIES + 1, device=t_B.device)
