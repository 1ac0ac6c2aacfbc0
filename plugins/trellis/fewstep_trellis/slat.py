"""The structured-latent flow, TRELLIS's second stage, as a ``Backbone`` on packed voxels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fewstep.config.base import validate
from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Layout, Packed
from fewstep.errors import FewstepError
from fewstep.files import write_json
from fewstep.texts import read_json
from fewstep_trellis.flow import Flow, FlowConfig, check_checkpoint, load_frozen
from fewstep_trellis.models import SLatFlowModel, SLatMeshDecoder
from fewstep_trellis.normalisation import KEY, Normalisation
from fewstep_trellis.shipped import NANO, existing, shipped_students

if TYPE_CHECKING:
    from fewstep.core.dataset import Dataset
    from fewstep.core.suite import Suite

NORMALISATION = "normalisation.json"
L = TypeVar("L", bound="StructuredLatentFlow")


class SLatConfig(FlowConfig):
    """Which structured-latent flow is distilled, how its teacher is guided, and what decodes its latents."""

    guidance: float = Field(  # the included flow is best unguided (benchmarks/quality/teacher/README.md)
        1.0, ge=0, description="teacher's guidance scale g in u + g (c - u) at sampling; 1: none"
    )
    teacher: Path = Field(NANO / "slat_flow", description="SLat-flow checkpoint (json + safetensors pair)")
    decoder: Path = Field(NANO / "slat_decoder_mesh", description="mesh-decoder checkpoint, for fewstep bench")
    normalisation: Normalisation | None = Field(
        None, description="mean and std of the latents; none: those of pipeline.json in the teacher's folder or above"
    )


class StructuredLatentFlow(Flow):
    """Velocity of latents [T, C] on the occupied voxels of ``layout`` (``Packed`` with coords) under tokens [B, L, Cc].

    Args:
        model: the network.
        normalisation: between its latents and the decoders'; None if they are the same. It is saved with a student.
    """

    Config: ClassVar[Any] = SLatConfig
    network: ClassVar[type[nn.Module]] = SLatFlowModel
    name = "trellis-slat"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"packed", "jvp", "two_time", "negative_time", "features", "guidance_input", "policy"}
    )
    dataset = "sweethome3d-slat"
    stage = "slat"
    normalisation_key = KEY
    voxels: ClassVar[int] = 8192  # of a large object

    def __init__(self, model: nn.Module, normalisation: Normalisation | None = None) -> None:
        super().__init__(model)
        self.normalisation = normalisation

    def velocity(self, x: Tensor, t_B: Tensor, s_B: Tensor | None, cond: Condition, layout: Layout) -> Tensor:
        if not isinstance(layout, Packed) or layout.coords is None:
            got = "no coords" if isinstance(layout, Packed) else type(layout).__name__
            raise FewstepError(f"backbone {self.name!r} needs a Packed layout with voxel coordinates, got {got}")
        return cast(Tensor, self.model(x, t_B, cond, layout, s=s_B))

    def taps(self) -> list[tuple[nn.Module, int]]:
        """The blocks after the last doubling of the resolution, or the transformer's where nothing is merged: the rows
        of their outputs are those of x."""
        merges, count = self.model.depth > 0, self.model.args["num_io_res_blocks"]
        blocks = self.model.out_blocks[-count:] if merges else self.model.blocks
        return [(block, self.model.out_layer.in_features) for block in blocks]

    def example(self, samples: int) -> Batch:
        """Objects of ``voxels`` voxels, or as many as its grid has, on a sphere-like surface."""
        size = self.model.args["resolution"]
        places = torch.cartesian_prod(*[torch.arange(size)] * 3)
        distance = (places.float() - (size - 1) / 2).norm(dim=1)
        places = places[(distance - 0.4 * size).abs().argsort()[: self.voxels]]
        layout = Packed.of_lengths([len(places)] * samples, places.repeat(samples, 1).int())
        cond = Condition(torch.empty(samples, self.tokens, self.model.cond_channels, device="meta"))
        return Batch(torch.empty(layout.rows, self.model.args["out_channels"], device="meta"), layout, cond)

    @classmethod
    def initial(cls: type[L], config: Any) -> L:
        backbone = cls.load_file(existing("backbone.teacher", config.teacher))
        backbone.normalisation = normalisation_of(config, cls.normalisation_key)
        return backbone

    def save(self, folder: Path, *, half: bool = False) -> None:
        super().save(folder, half=half)
        if self.normalisation is not None:
            write_json(folder / NORMALISATION, self.normalisation.model_dump(mode="json"))

    @classmethod
    def load(cls: type[L], folder: Path) -> L:
        backbone, file = super().load(folder), folder / NORMALISATION
        if file.is_file():
            backbone.normalisation = validate(Normalisation, read_json(file))
        return backbone

    @classmethod
    def check_config(cls, config: Any) -> None:
        super().check_config(config)
        if hasattr(config, "decoder"):  # the stages of TRELLIS.2 have none
            check_checkpoint(SLatMeshDecoder, "backbone.decoder", config.decoder)

    @classmethod
    def students(cls) -> dict[str, Path]:
        return shipped_students("slat")

    @classmethod
    def measures(cls, dataset: type[Dataset]) -> bool:
        from fewstep_trellis.slat_dataset import PreparedLatents

        return issubclass(dataset, PreparedLatents)

    @classmethod
    def suite(cls, config: Any, dataset: Dataset) -> Suite:
        from fewstep_trellis.slat_dataset import PreparedLatents
        from fewstep_trellis.slat_suite import StructuredLatentSuite
        from fewstep_trellis.unmeasured import UnmeasuredSurfaces

        decoder = load_frozen(SLatMeshDecoder, "backbone.decoder", config.decoder)
        if isinstance(dataset, PreparedLatents):
            return StructuredLatentSuite.of(dataset, decoder, normalisation_of(config))
        return UnmeasuredSurfaces(dataset, decoder, normalisation_of(config))


def normalisation_of(config: Any, key: str = KEY) -> Normalisation | None:
    """The config's normalisation, else what the ``pipeline.json`` beside the teacher has under ``key``."""
    return config.normalisation or Normalisation.beside(existing("backbone.teacher", config.teacher), key)
