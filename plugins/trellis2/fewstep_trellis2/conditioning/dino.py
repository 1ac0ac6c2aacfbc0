"""DINOv3 tokens as TRELLIS.2's image condition: taken before the model's last norm, then through a plain layer norm."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fewstep_shapes3d.pictures.background import shrunk
from fewstep_shapes3d.pictures.loading import as_rgba
from fewstep_shapes3d.pictures.preprocess import Background, prepare
from fewstep_trellis.conditioning import hub
from fewstep_trellis.conditioning.dino import normalise, pixels
from fewstep_trellis.conditioning.protocol import OPTION_IMAGE
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import FewstepError, invalid

KIND = hub.Kind("image encoder", OPTION_IMAGE, "DINOv3ViTModel", ("dinov3_vit",))
GATED = "facebook/dinov3-"
SIZES = (512, 1024)  # pixels on a side, for the flows of coarse and of fine grids


class DinoV3Conditioner(nn.Module):
    """Pictures to tokens [B, 1 + registers + patches, C] of a DINOv3 (TRELLIS.2: ViT-L/16, 4 registers).

    Args:
        model: a ``DINOv3ViTModel`` of transformers. Its last norm is taken out.
        name: for records and messages.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        model.norm = nn.Identity()
        self.model, self.name = model.eval().requires_grad_(False), name
        self.channels, self.patch = int(model.config.hidden_size), int(model.config.patch_size)

    @staticmethod
    def prepare(image: Image.Image, name: str = "the picture", background: Background = "remove") -> Image.Image:
        """The object on black, RGB, cropped without a margin, of any size, as TRELLIS.2's pipeline prepares it.

        Raises:
            FewstepError: no pixel is opaque enough to see an object, or the background cannot be removed.
        """
        return prepare(shrunk(as_rgba(image, name)), name, None, background, margin=1.0)

    def encode(self, images: Sequence[Image.Image], size: int = SIZES[0]) -> Tensor:
        """Prepared pictures, each stretched to ``size`` squared, to tokens [B, L, C] on the encoder's device."""
        device = next(self.parameters()).device
        # One by one: the 4101 tokens of a picture of 1024 pixels fill a small GPU.
        return torch.cat([self(pixels(image, size)[None].to(device)) for image in images])

    @torch.no_grad()  # not inference mode: a student that is trained on these tokens saves them for its backward pass
    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], on black, to tokens [B, L, C]: layer norm without parameters, eps 1e-5.

        The order is class token, registers, patches row by row. The unconditional pass has zeros in their place.

        Raises:
            FewstepError: sides that are not multiples of the patch.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % self.patch for side in images.shape[2:]):
            raise invalid("images", tuple(images.shape), f"[B, 3, H, W] with sides that are multiples of {self.patch}")
        tokens = self.model(normalise(images)).last_hidden_state
        return F.layer_norm(tokens, (self.channels,), eps=1e-5)

    def negative(self, batch: int) -> None:
        """The condition of the unconditional pass: zeros."""


def image_conditioner(name: str | Path) -> DinoV3Conditioner:
    """The image encoder of this name: a DINOv3 on the hub, or a folder in transformers' format.

    Raises:
        FewstepError: nothing of this name, or it cannot be loaded or downloaded. For gated weights the message says
            how to get them.
    """
    text = str(name)
    if _is_folder(name):
        return DinoV3Conditioner(hub.load(Path(name), KIND), text)
    return DinoV3Conditioner(hub.load(hub.download(text, KIND, _how_to_get(text)), KIND), text)


def check_image_conditioner(name: str | Path) -> None:
    """Look whether the image encoder of this name is there, of the right kind and whole, without reading weights. What
    may be on the hub is not fetched for it.

    Raises:
        FewstepError: as :func:`image_conditioner`.
    """
    if _is_folder(name):
        hub.check_folder(Path(name), KIND)


def _is_folder(name: str | Path) -> bool:
    """Whether this is a folder, and not a repository on the hub. Raises FewstepError for what can be neither."""
    if os.path.isdir(name):  # unlike Path.is_dir, for any text
        return True
    if os.path.exists(name) or not hub.is_repository(str(name)):
        raise FewstepError(
            f"{KIND.option}: got {str(name)!r}; accepted: a folder with {hub.CONFIG} and model.safetensors of a "
            "DINOv3, or its owner/name on the hub"
        )
    return False


def _how_to_get(name: str) -> str:
    if not name.startswith(GATED):
        return ""
    return (
        f". Its weights are gated: accept the licence at https://huggingface.co/{name}, then log in with "
        "`hf auth login` (or set HF_TOKEN) and download again"
    )
