"""The sampling contract that is stored with every student: how it is meant to be sampled."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator
from torch import Tensor

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Layout
from fewstep.core.times import step_grid
from fewstep.errors import FewstepError, invalid
from fewstep.plugins.registry import registry

if TYPE_CHECKING:
    from fewstep.core.objective import Step


class Contract(Strict):
    """How a student is sampled. ``fewstep sample`` obeys it and warns when told otherwise."""

    sampler: str = Field("euler", description="registered sampler")
    noise: float | None = Field(
        None, ge=0, le=1, description="the sampler's share of fresh noise (consistency, gamma); none: its own default"
    )
    steps: tuple[int, ...] = Field((1, 2, 4), description="step counts the student was made for")
    times: tuple[float, ...] = Field((), description="times it was trained at, from 1 downwards; none: all times")
    rescale_t: float = Field(1.0, gt=0, description="warp of the time grid, r t / (1 + (r - 1) t)")
    guidance: float = Field(1.0, description="guidance scale at sampling; 1: none needed, it is baked in")
    strength: float | None = Field(
        None, ge=0, description="guidance strength w that the student is given as an input; none: it has no such input"
    )
    strengths: tuple[float, float] | None = Field(
        None, description="least and largest strength that it was trained with"
    )
    two_time: bool = Field(False, description="the student takes a target time s, which 'jump' and 'gamma' pass")

    @field_validator("times")
    @classmethod
    def _downwards(cls, times: tuple[float, ...]) -> tuple[float, ...]:
        if times and (times[0] != 1 or times[-1] <= 0 or any(t <= s for t, s in pairwise(times))):
            raise ValueError("times that fall from 1 and end above 0")
        return times

    @property
    def made_for(self) -> str:
        """The step counts in words: ``1 step``, ``2, 4 steps``."""
        return ", ".join(map(str, self.steps)) + (" step" if self.steps == (1,) else " steps")

    @property
    def sampling(self) -> str:
        """The sampler as ``sampled_by`` takes it: ``jump``, ``gamma:0.3``."""
        return self.sampler if self.noise is None else f"{self.sampler}:{self.noise:g}"

    def grid(self, steps: int) -> list[float]:
        """[steps + 1] times from 1 to 0: chosen from the student's training times if there are enough of them, else
        evenly spaced and warped by ``rescale_t``."""
        count = len(self.times)
        if steps > count:
            return step_grid(steps, self.rescale_t)
        return [*(self.times[i * count // steps] for i in range(steps)), 0.0]

    def with_strength(self, strength: float) -> Contract:
        """The contract with another guidance strength.

        Raises:
            FewstepError: for a student without that input, or a strength that is not finite or below 0.
        """
        if self.strength is None:
            raise invalid("--guidance", strength, "nothing: this student takes no guidance strength, it is baked in")
        if not 0 <= strength < math.inf:
            raise invalid("--guidance", strength, "a strength w from 0 on, as in (1 + w) c - w u")
        return self.model_copy(update={"strength": strength})

    def told(self, cond: Condition, x: Tensor, layout: Layout) -> Condition:
        """The condition that the student is given for samples ``x``: with the guidance strength where it takes one."""
        return cond if self.strength is None else cond.with_strength(self.strength, x, layout)

    def sample(
        self, network: Backbone, noise: Tensor, cond: Condition, layout: Layout, steps: int, step: Step
    ) -> Tensor:
        """The samples that the student makes of ``noise``, [B, ...] or [T, C], in this many steps, shaped like it. All
        tensors are on one device."""
        field = network if self.guidance == 1.0 else Teacher(network, Guidance(self.guidance))
        told = self.told(cond, noise, layout)
        samples: Tensor = self.load_sampler()(field, noise, told, layout, self.grid(steps), step)
        return samples

    def load_sampler(self) -> Any:
        """The sampler with its setting, a ``Sampler`` or a function that a plugin registers as one.

        Raises:
            FewstepError: for a sampler that is not registered, or a ``noise`` setting of one that adds no noise.
        """
        sampler = registry().get("sampler", self.sampler).load()
        if self.noise is None:
            return sampler
        if getattr(sampler, "noise", None) is None:
            raise invalid("sampler", self.sampling, f"{self.sampler!r} alone, which adds no noise")
        return sampler.with_noise(self.noise)

    def sampled_by(self, text: str) -> Contract:
        """The contract with another sampler, ``NAME`` or ``NAME:NOISE`` with its share of fresh noise. The contract's
        own sampler keeps its setting unless another is given.

        Raises:
            FewstepError: for a sampler that is not registered, that asks for another kind of student, or whose setting
                is out of bounds.
        """
        name, noise = parse_sampler(text)
        if name == self.sampler and noise is None:
            return self
        changed, two_time = self.model_copy(update={"sampler": name, "noise": noise}), _two_time(self.load_sampler())
        if _two_time(changed.load_sampler()) != two_time:
            asks, takes = ("no target time", "one") if two_time else ("a target time", "none")
            names = [entry.name for entry in registry().entries("sampler") if _two_time(entry.load()) == two_time]
            raise FewstepError(
                f"sampler {name!r} passes {asks}, and the student of sampler {self.sampler!r} takes {takes}; accepted: "
                f"{', '.join(names)}"
            )
        return changed


def parse_sampler(text: str) -> tuple[str, float | None]:
    """The registered name, and the share of fresh noise where there is one, of ``NAME`` or ``NAME:NOISE``.

    Raises:
        FewstepError: for a name that is not registered, or a share that is no number from 0 to 1.
    """
    name, colon, number = text.partition(":")
    name = registry().get("sampler", name).name
    if not colon:
        return name, None
    try:
        noise = float(number)
    except ValueError:
        noise = -1.0
    if not 0 <= noise <= 1:
        raise invalid("sampler", text, f"{name}:NOISE, a share of fresh noise from 0 to 1")
    return name, noise


def _two_time(sampler: Any) -> bool:
    """Whether a sampler passes a target time; False for a plain function, of which it is not known."""
    return bool(getattr(sampler, "two_time", False))
