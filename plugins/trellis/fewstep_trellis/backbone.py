"""The sparse-structure flow as a ``Backbone``, and the two stages of TRELLIS by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Dense, Layout
from fewstep_trellis.flow import Flow, FlowConfig, check_checkpoint, load_frozen
from fewstep_trellis.models import SparseStructureDecoder, SparseStructureFlowModel
from fewstep_trellis.shipped import NANO, shipped_students

if TYPE_CHECKING:
    from fewstep.core.dataset import Dataset
    from fewstep.core.suite import Suite


class TrellisConfig(FlowConfig):
    """Which structure flow is distilled, how its teacher is guided, and what decodes its latents."""

    teacher: Path = Field(NANO / "ss_flow", description="structure-flow checkpoint (json + safetensors pair)")
    decoder: Path = Field(NANO / "ss_decoder", description="structure-decoder checkpoint")


class StructureFlow(Flow):
    """Velocity of structure latents [B, C, R, R, R] under image tokens [B, L, Cc]."""

    Config: ClassVar[Any] = TrellisConfig
    network: ClassVar[type[nn.Module]] = SparseStructureFlowModel
    name = "trellis"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"dense", "jvp", "two_time", "negative_time", "features", "guidance_input", "policy"}
    )
    dataset = "sweethome3d"
    stage = "ss"

    def velocity(self, x: Tensor, t_B: Tensor, s_B: Tensor | None, cond: Condition, layout: Layout) -> Tensor:
        return cast(Tensor, self.model(x, t_B, cond, s=s_B))

    def example(self, samples: int) -> Batch:
        size = [self.model.resolution] * 3
        cond = Condition(torch.empty(samples, self.tokens, self.model.cond_channels, device="meta"))
        return Batch(torch.empty(samples, self.model.in_channels, *size, device="meta"), Dense(samples), cond)

    def taps(self) -> list[tuple[nn.Module, int]]:
        return [(block, self.model.out_layer.in_features) for block in self.model.blocks]

    @classmethod
    def check_config(cls, config: Any) -> None:
        super().check_config(config)
        if hasattr(config, "decoder"):  # the stages of TRELLIS.2 have none
            check_checkpoint(SparseStructureDecoder, "backbone.decoder", config.decoder)

    @classmethod
    def students(cls) -> dict[str, Path]:
        return shipped_students("ss")

    @classmethod
    def measures(cls, dataset: type[Dataset]) -> bool:
        from fewstep_trellis.dataset import PreparedObjects

        return issubclass(dataset, PreparedObjects)

    @classmethod
    def suite(cls, config: Any, dataset: Dataset) -> Suite:
        from fewstep_trellis.dataset import PreparedObjects
        from fewstep_trellis.suite import StructureSuite
        from fewstep_trellis.unmeasured import UnmeasuredStructures

        decoder = load_decoder(config.decoder)
        if isinstance(dataset, PreparedObjects):
            return StructureSuite.of(dataset, decoder)
        return UnmeasuredStructures(dataset, decoder)


def load_decoder(path: Path) -> SparseStructureDecoder:
    """The decoder from latents to occupancy logits, frozen.

    Raises:
        FewstepError: for a missing checkpoint or one of another class.
    """
    return load_frozen(SparseStructureDecoder, "backbone.decoder", path)
