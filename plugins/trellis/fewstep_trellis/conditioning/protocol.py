"""What a pipeline needs of an image encoder, and of a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from fewstep_shapes3d.pictures.preprocess import Background
from PIL import Image
from torch import Tensor

OPTION_IMAGE, OPTION_TEXT = "--image-encoder", "--text-encoder"


class ImageConditioner(Protocol):
    """Pictures to condition tokens. ``name`` is for records, ``channels`` the width C of a token."""

    name: str
    channels: int

    def prepare(self, image: Image.Image, name: str = "the picture", background: Background = "remove") -> Image.Image:
        """The square RGB picture that is encoded. Raises FewstepError, with ``name``, where there is no object."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], objects on black, to tokens [B, L, C]."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Prepared pictures to tokens [B, L, C], on the encoder's device."""
        ...

    def negative(self, batch: int) -> Tensor | None:
        """The condition of the unconditional pass [B, L, C]; None: zeros."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Moves the encoder."""
        ...


class TextConditioner(Protocol):
    """Texts to condition tokens, likewise."""

    name: str
    channels: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts to tokens [B, L, C], on the encoder's device."""
        ...

    def negative(self, batch: int) -> Tensor:
        """The condition of the unconditional pass [B, L, C]."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Moves the encoder."""
        ...
