"""Samples of students whose data set has no held-out objects: ``fewstep sample`` decodes and writes them too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fewstep_shapes3d.measures.held_out import Pictured
from fewstep_shapes3d.measures.shapes import ViewEncoder
from torch import nn

from fewstep.core.batch import Batch
from fewstep.core.dataset import Dataset
from fewstep.core.suite import Unmeasured
from fewstep_trellis.models import SLatMeshDecoder
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.dataset import OfficialDataset
from fewstep_trellis.slat_suite import SurfaceObjects
from fewstep_trellis.suite import StructureObjects


class UnmeasuredStructures(StructureObjects, Unmeasured):
    """Structures under conditions of training samples, or of a picture prepared as the training's were."""

    def __init__(self, dataset: Dataset, decoder: nn.Module) -> None:
        super().__init__(dataset)
        self.decoder, self.views, self.device = decoder, ViewEncoder(), torch.device("cpu")

    def prompt_from(self, image: Path, background: str = "remove") -> Batch:
        if not isinstance(self.dataset, OfficialDataset):
            return super().prompt_from(image, background)
        (condition, picture), one = self.dataset.condition_of(image, background), self.prompts(1)
        pixels = torch.from_numpy(np.array(picture))[None]
        return Pictured(torch.zeros_like(one.x0), one.layout, condition.to("cpu"), pixels)


class UnmeasuredSurfaces(SurfaceObjects, Unmeasured):
    """Structured latents on the voxels of training samples, under their conditions."""

    def __init__(self, dataset: Dataset, decoder: SLatMeshDecoder, normalisation: Normalisation | None) -> None:
        super().__init__(dataset)
        self.decoder, self.normalisation = decoder, normalisation
        self.views, self.device, self.azimuths = ViewEncoder(), torch.device("cpu"), []
