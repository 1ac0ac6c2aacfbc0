"""The sparse-structure flow as a ``Backbone``: TRELLIS's own model behind the core's conventions."""

from __future__ import annotations

import copy
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fewstep.backbone import Backbone, Guidance, Teacher
from fewstep.batch import Condition
from fewstep.config import Strict
from fewstep.errors import FewstepError
from fewstep.layout import Layout
from fewstep.path import Path
from fewstep_trellis.checkpoint import load_model, save_model
from fewstep_trellis.models import SparseStructureDecoder, SparseStructureFlowModel
from fewstep_trellis.shipped import NANO, existing, shipped_students

if TYPE_CHECKING:
    from fewstep.dataset import Dataset
    from fewstep.suite import Suite

SIGMA_MIN = 1e-5


class TrellisConfig(Strict):
    """Which structure flow is distilled, how its teacher is guided, and what decodes its latents."""

    teacher: FilePath = Field(NANO / "ss_flow", description="structure-flow checkpoint (json + safetensors pair)")
    decoder: FilePath = Field(NANO / "ss_decoder", description="structure-decoder checkpoint")
    guidance: float = Field(3.0, ge=0, description="teacher's guidance scale g in u + g (c - u) at sampling; 1: none")
    interval: tuple[float, float] = Field((0.0, 1.0), description="times with guidance, both ends included")
    rescale_t: float = Field(1.0, gt=0, description="warp of the teacher's time grid")


class StructureFlow(Backbone):
    """Velocity of structure latents [B, C, R, R, R] under image tokens [B, L, Cc].

    Args:
        model: the network with TRELLIS's parameter names; it is given 1000 t.
    """

    Config = TrellisConfig
    provides: ClassVar[frozenset[str]] = frozenset({"dense", "jvp"})
    dataset = "sweethome3d"
    path = Path(SIGMA_MIN)

    def __init__(self, model: SparseStructureFlowModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        if s_B is not None:
            raise FewstepError("backbone 'trellis' takes one time: it does not provide 'two_time'")
        if cond.tokens is None:
            raise FewstepError("backbone 'trellis' needs condition tokens [B, L, C], got none")
        # Scaled before rounding: a float64 grid keeps its digits, as the reference's does.
        velocity: Tensor = self.model(x, (1000 * t_B).to(x.dtype), cond.tokens)
        return velocity

    @classmethod
    def teacher(cls, config: TrellisConfig) -> Teacher:
        """The frozen flow of ``config.teacher``.

        Raises:
            FewstepError: for a missing or foreign checkpoint.
        """
        backbone = cls.load_file(existing("backbone.teacher", config.teacher))
        return Teacher(backbone, Guidance(config.guidance, config.interval))

    def student(self) -> StructureFlow:
        """A float32 copy: a half-precision torso is for sampling, its updates would round to nothing."""
        copied = copy.deepcopy(self)
        copied.model.convert_to_fp32()
        return copied

    @classmethod
    def students(cls) -> dict[str, FilePath]:
        return shipped_students()

    @classmethod
    def load_file(cls, path: FilePath) -> StructureFlow:
        """A structure flow in the official format."""
        model = load_model(path)
        if not isinstance(model, SparseStructureFlowModel):
            raise FewstepError(f"{path}: holds a {type(model).__name__}; accepted: a SparseStructureFlowModel")
        return cls(model)

    def save(self, folder: FilePath, *, half: bool = False) -> None:
        save_model(self.model, folder / "model", dtype=torch.float16 if half else None)

    @classmethod
    def load(cls, folder: FilePath) -> StructureFlow:
        return cls.load_file(folder / "model")

    @classmethod
    def suite(cls, config: Any, dataset: Dataset) -> Suite:
        from fewstep_trellis.dataset import PreparedObjects
        from fewstep_trellis.suite import StructureSuite

        if not isinstance(dataset, PreparedObjects):
            raise FewstepError(f"fewstep bench --backbone trellis needs prepared objects, got {type(dataset).__name__}")
        return StructureSuite.of(dataset, load_decoder(config.decoder))

    def shard_units(self) -> list[nn.Module]:
        return list(self.model.blocks)


def load_decoder(path: FilePath) -> SparseStructureDecoder:
    """The decoder from latents to occupancy logits, frozen.

    Raises:
        FewstepError: for a missing checkpoint or one of another class.
    """
    model = load_model(existing("backbone.decoder", path))
    if not isinstance(model, SparseStructureDecoder):
        raise FewstepError(f"{path}: holds a {type(model).__name__}; accepted: a SparseStructureDecoder")
    return model.eval().requires_grad_(False)
