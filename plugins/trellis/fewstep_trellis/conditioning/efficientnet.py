"""The nano models' image encoder as a conditioner: EfficientNet-Lite0 and the basis of the set they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.measures.features import POSITIONS, SIZE, ImageEncoder, TokenBasis
from fewstep_shapes3d.pictures.preprocess import Background, prepare_once
from PIL import Image
from torch import Tensor, nn

from fewstep.errors import invalid

NAME = "efficientnet-lite0"


class EfficientNetConditioner(nn.Module):
    """Pictures to tokens [B, 49, C]: the channels of a basis, and of the token's position.

    Args:
        basis: of the prepared set that the models were trained on.
        name: for records.
    """

    size = SIZE

    def __init__(self, basis: TokenBasis, name: str = NAME) -> None:
        super().__init__()
        self.encoder, self.name, self.channels = ImageEncoder(basis), name, int(basis.basis.shape[1]) + POSITIONS

    @classmethod
    def of(cls, data: Path | str = SWEETHOME3D) -> EfficientNetConditioner:
        """With the basis of a prepared set, by default the shipped one. Raises FewstepError if there is no such set."""
        return cls(PreparedSet.load(data).basis())

    def prepare(self, image: Image.Image, name: str = "the picture", background: Background = "remove") -> Image.Image:
        """The object on black, RGB. An opaque picture with a black border is taken as prepared and used whole.

        Raises:
            FewstepError: it shows no object, or has a background that cannot be removed.
        """
        return prepare_once(image, name, self.size, background)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Tokens [B, 49, C] of prepared pictures; each is resized to 224 pixels if it has another size."""
        sized = [image.convert("RGB").resize((self.size, self.size), Image.Resampling.LANCZOS) for image in images]
        return self.encoder.encode([np.asarray(image) for image in sized])

    def negative(self, batch: int) -> Tensor | None:
        """The negative condition; None: zeros."""
        return None

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, 224, 224] in [0, 1], on black, to tokens [B, 49, C]. Raises FewstepError for other sizes."""
        if images.ndim != 4 or images.shape[1:] != (3, self.size, self.size):
            accepted = f"[B, 3, {self.size}, {self.size}] for {self.name}: of a data set, data.image_size={self.size}"
            raise invalid("images", tuple(images.shape), accepted)
        tokens: Tensor = self.encoder(images)
        return tokens
