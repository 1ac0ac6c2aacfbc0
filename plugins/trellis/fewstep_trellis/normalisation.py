"""The shift and scale between the latents of a SLat encoder and those that the SLat flow is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fewstep.config.base import Strict, validate
from fewstep.errors import FewstepError, invalid
from fewstep.texts import read_json

PIPELINE = "pipeline.json"
KEY = "slat_normalization"


class Normalisation(Strict):
    """(z - mean) / std by channel. TRELLIS keeps the numbers in ``pipeline.json`` and in its training configs."""

    mean: tuple[float, ...] = Field(min_length=1, description="mean of each channel")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, description="deviation of each channel")

    @model_validator(mode="after")
    def _same_length(self) -> Normalisation:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must have the same length, got {len(self.mean)} and {len(self.std)}")
        return self

    def apply(self, z: Tensor) -> Tensor:
        """Latents [T, C] of the encoder to those of the flow."""
        mean, std = self._rows(z)
        return (z - mean) / std

    def undo(self, x: Tensor) -> Tensor:
        """Latents [T, C] of the flow to those of the decoders."""
        mean, std = self._rows(x)
        return x * std + mean

    def _rows(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.shape[-1] != len(self.mean):
            raise invalid("normalisation", f"{len(self.mean)} channels", f"{like.shape[-1]}, as the latents have")
        mean, std = (torch.tensor(row, dtype=like.dtype, device=like.device) for row in (self.mean, self.std))
        return mean, std

    @classmethod
    def beside(cls, checkpoint: Path, key: str = KEY) -> Normalisation | None:
        """What ``pipeline.json`` in a checkpoint's folder, or in the one above, has under ``key``; None where there is
        none.

        Raises:
            FewstepError: for a ``pipeline.json`` that is not JSON or whose numbers cannot be used.
        """
        for folder in (checkpoint.parent, checkpoint.parent.parent):
            if (folder / PIPELINE).is_file():
                return cls._read(folder / PIPELINE, key)
        return None

    @classmethod
    def _read(cls, file: Path, key: str) -> Normalisation | None:
        try:
            found = read_json(file)["args"].get(key)
        except (FewstepError, KeyError, TypeError, AttributeError) as error:
            raise FewstepError(f"{file}: no pipeline description ({type(error).__name__}: {error})") from None
        try:
            return None if found is None else validate(cls, found)
        except FewstepError as error:
            raise FewstepError(f"{file}, {key}: {error}") from None
