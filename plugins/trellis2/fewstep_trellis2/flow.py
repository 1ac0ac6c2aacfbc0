"""What the flows of all stages share: their names, and how their teachers are guided."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fewstep_trellis.flow import Flow, FlowConfig
from pydantic import Field

from fewstep.core.guidance import Guidance

if TYPE_CHECKING:
    from fewstep.core.dataset import Dataset
    from fewstep.core.suite import Suite

STAGES = MappingProxyType(
    {
        "structure": "trellis2",
        "shape": "trellis2-shape",
        "shape-1024": "trellis2-shape-1024",
        "texture": "trellis2-texture",
    }
)
"""The registered backbone of each stage, in order."""

RELEASED = "microsoft/TRELLIS.2-4B"
HUB = f"{RELEASED}/ckpts"

COARSE, FINE = 1029, 4101  # tokens of 512 and of 1024 pixels a side: patches of 16, the class token, 4 registers

GUIDANCE = "teacher's guidance scale g in u + g (c - u) at sampling; 1: none"
INTERVAL = "times with guidance, both ends included"
RESCALE = "CFG rescale: share of guidance's effect on the spread of the predicted data that is undone"
WARP = "warp of the teacher's time grid"


class StageConfig(FlowConfig):
    """How a teacher is guided and stepped. The defaults of each stage are those of the official pipeline."""

    guidance: float = Field(7.5, ge=0, description=GUIDANCE)
    interval: tuple[float, float] = Field((0.6, 1.0), description=INTERVAL)
    guidance_rescale: float = Field(0.5, ge=0, le=1, description=RESCALE)
    rescale_t: float = Field(3.0, gt=0, description=WARP)

    def teacher_guidance(self) -> Guidance:
        return Guidance(self.guidance, self.interval, self.guidance_rescale)


class MeasuredStage(Flow):
    """What ``fewstep bench`` has for a stage. No students ship with this plugin."""

    @classmethod
    def students(cls) -> dict[str, Path]:
        return {}

    @classmethod
    def measures(cls, dataset: type[Dataset]) -> bool:
        from fewstep_trellis2.dataset.sets import Trellis2Dataset

        return issubclass(dataset, Trellis2Dataset)

    @classmethod
    def suite(cls, config: Any, dataset: Dataset) -> Suite:
        from fewstep.core.suite import Unmeasured
        from fewstep_trellis2.dataset.sets import Trellis2Dataset
        from fewstep_trellis2.suite import LatentSuite

        return LatentSuite(dataset) if isinstance(dataset, Trellis2Dataset) else Unmeasured(dataset)
