"""The sampling contract that every student carries: how it wants to be sampled, so that nobody has to guess."""

from __future__ import annotations

from pydantic import Field

from fewstep.config.base import Strict
from fewstep.core.times import step_grid


class Contract(Strict):
    """How a student is sampled. ``fewstep sample`` obeys it and warns when told otherwise."""

    sampler: str = Field("euler", description="registered sampler")
    steps: tuple[int, ...] = Field((1, 2, 4), description="step counts the student was made for")
    rescale_t: float = Field(1.0, gt=0, description="warp of the time grid, r t / (1 + (r - 1) t)")
    guidance: float = Field(1.0, description="guidance scale at sampling; 1: none needed, it is baked in")
    two_time: bool = Field(False, description="the student takes a target time s, which sampler 'jump' passes")

    @property
    def made_for(self) -> str:
        """The step counts in words: ``1 step``, ``2, 4 steps``."""
        return ", ".join(map(str, self.steps)) + (" step" if self.steps == (1,) else " steps")

    def grid(self, steps: int) -> list[float]:
        """Times from 1 to 0 for this many steps."""
        return step_grid(steps, self.rescale_t)
