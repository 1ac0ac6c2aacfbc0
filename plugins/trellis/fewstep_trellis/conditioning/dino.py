"""DINOv2 tokens as TRELLIS's image condition: taken before the model's last norm, then through a plain layer norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fewstep_shapes3d.pictures.preprocess import Background, prepare
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import invalid
from fewstep_trellis.conditioning import hub
from fewstep_trellis.conditioning.dino_keys import read_original
from fewstep_trellis.conditioning.protocol import OPTION_IMAGE

KIND = hub.Kind("image encoder", OPTION_IMAGE, "Dinov2WithRegistersModel", ("dinov2_with_registers",))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
BATCH = 4


@dataclass(frozen=True)
class Interpolation:
    """Bicubic resizing of the position table: antialiased or not, and what is added to the size."""

    antialias: bool = True
    offset: float = 0.0

    @classmethod
    def released(cls, registers: int) -> Interpolation:
        """As DINOv2 was released: antialiased to the exact size with registers; without them neither."""
        return cls() if registers else cls(antialias=False, offset=0.1)

    def __call__(self, table_1NC: Tensor, rows: int, columns: int) -> Tensor:
        """Positions [1, 1 + side^2, C] to [1, 1 + rows * columns, C]; the class token's is left as it is."""
        side = round((table_1NC.shape[1] - 1) ** 0.5)
        if rows == columns == side:
            return table_1NC
        size = None if self.offset else (rows, columns)
        factors = ((rows + self.offset) / side, (columns + self.offset) / side) if self.offset else None
        grid = table_1NC[:, 1:].unflatten(1, (side, side)).movedim(-1, 1).float()
        sized = F.interpolate(grid, size, factors, mode="bicubic", antialias=self.antialias)
        return torch.cat([table_1NC[:, :1], sized.to(table_1NC.dtype).flatten(2).mT], 1)


class DinoConditioner(nn.Module):
    """Pictures to tokens [B, 1 + registers + patches, C] of a DINOv2 (TRELLIS: ViT-L/14, 4 registers, 518 pixels).

    Args:
        model: a ``Dinov2WithRegistersModel`` of transformers.
        name: for records and messages.
        interpolation: None takes the released models'.
    """

    def __init__(self, model: Any, name: str, interpolation: Interpolation | None = None) -> None:
        super().__init__()
        self.model, self.name = model.eval().requires_grad_(False), name
        config = model.config
        self.channels, self.patch, self.size = int(config.hidden_size), int(config.patch_size), int(config.image_size)
        self.interpolation = interpolation or Interpolation.released(config.num_register_tokens)

    @classmethod
    def from_folder(cls, folder: Path, name: str = "") -> DinoConditioner:
        """Weights in transformers' format. Raises FewstepError where they cannot be used."""
        return cls(hub.load(folder, KIND), name or str(folder))

    @classmethod
    def from_original(
        cls, path: Path, name: str = "", *, heads: int | None = None, interpolation: Interpolation | None = None
    ) -> DinoConditioner:
        """Weights in DINOv2's own layout, such as ``dinov2_vitl14_reg4_pretrain.pth``. Raises FewstepError likewise."""
        architecture, state = read_original(path, heads)
        return cls(hub.build(KIND, architecture.config(), state, str(path)), name or str(path), interpolation)

    def prepare(self, image: Image.Image, name: str = "the picture", background: Background = "remove") -> Image.Image:
        """The object on black, RGB, as TRELLIS's pipeline prepares it. Raises FewstepError where it shows none."""
        return prepare(image, name, self.size, background)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Tokens [B, L, C] of prepared pictures; each is resized to the model's size if it has another."""
        device = next(self.parameters()).device
        chunks = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]
        return torch.cat(
            [self(torch.stack([pixels(image, self.size) for image in chunk]).to(device)) for chunk in chunks]
        )

    def negative(self, batch: int) -> Tensor | None:
        """The negative condition; None: zeros."""
        return None

    @torch.no_grad()  # not inference mode: a student that is trained on these tokens saves them for its backward pass
    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], on black, to tokens [B, L, C]: layer norm without parameters, eps 1e-5.

        Raises:
            FewstepError: sides that are not multiples of the patch.
        """
        return F.layer_norm(self.prenorm(images), (self.channels,), eps=1e-5)

    @torch.no_grad()
    def prenorm(self, images: Tensor) -> Tensor:
        """The tokens after the last block: class, registers, patches row by row from the top left."""
        if images.ndim != 4 or images.shape[1] != 3 or any(side % self.patch for side in images.shape[2:]):
            raise invalid("images", tuple(images.shape), f"[B, 3, H, W] with sides that are multiples of {self.patch}")
        return cast(Tensor, self.model.encoder(self.embed(normalise(images))).last_hidden_state)

    def embed(self, pixels: Tensor) -> Tensor:
        """Input of the first block: class and patch tokens with positions, between them the registers without."""
        parts, (rows, columns) = self.model.embeddings, (side // self.patch for side in pixels.shape[2:])
        patches = parts.patch_embeddings(pixels)
        tokens = torch.cat([parts.cls_token.expand(len(pixels), -1, -1), patches], 1)
        tokens = tokens + self.interpolation(parts.position_embeddings, rows, columns)
        return torch.cat([tokens[:, :1], parts.register_tokens.expand(len(pixels), -1, -1), tokens[:, 1:]], 1)


def pixels(image: Image.Image, size: int) -> Tensor:
    """A picture of any shape as float32 [3, size, size] in [0, 1], stretched to the square (Lanczos).

    As in the reference, alpha takes part in the resizing and is dropped afterwards.
    """
    sized = image.resize((size, size), Image.Resampling.LANCZOS).convert("RGB")
    return torch.from_numpy(np.asarray(sized).astype(np.float32) / 255).permute(2, 0, 1)


def normalise(images: Tensor) -> Tensor:
    """Pictures [..., 3, H, W] in [0, 1] by ImageNet's mean and deviation."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std
