"""What the flows of all stages share: their names, and how their teachers are guided."""

from __future__ import annotations

from types import MappingProxyType

from fewstep_trellis.flow import FlowConfig
from pydantic import Field

from fewstep.core.backbone import Guidance

STAGES = MappingProxyType(
    {
        "structure": "trellis2",
        "shape": "trellis2-shape",
        "shape-1024": "trellis2-shape-1024",
        "texture": "trellis2-texture",
    }
)
"""The registered backbone of each stage, in order."""

HUB = "microsoft/TRELLIS.2-4B/ckpts"


GUIDANCE = "teacher's guidance scale g in u + g (c - u) at sampling; 1: none"
INTERVAL = "times with guidance, both ends included"
RESCALE = "share by which guidance's effect on the spread of the predicted data is undone"
WARP = "warp of the teacher's time grid"


class StageConfig(FlowConfig):
    """How a teacher is guided and stepped. The defaults of each stage are those of the official pipeline."""

    guidance: float = Field(7.5, ge=0, description=GUIDANCE)
    interval: tuple[float, float] = Field((0.6, 1.0), description=INTERVAL)
    guidance_rescale: float = Field(0.5, ge=0, le=1, description=RESCALE)
    rescale_t: float = Field(3.0, gt=0, description=WARP)

    def teacher_guidance(self) -> Guidance:
        return Guidance(self.guidance, self.interval, self.guidance_rescale)
