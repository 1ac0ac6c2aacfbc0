"""Image encoders whose features are compared: the built-in one, and Inception-v3 and DINOv2 with local weights.

Nothing is downloaded. docs/scoring.md says where the weights are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import FewstepError, first_line, invalid, need
from fewstep_shapes3d.measures.shapes import ViewEncoder

BUILT_IN, INCEPTION, DINOV2 = "efficientnet", "inception", "dinov2"
SIDE = 224  # pixels of a picture for DINOv2
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Encoder:
    """``encode`` makes features [N, V, F] of pictures [N, V, 3, H, W] in [0, 1]; ``stamp`` identifies its weights."""

    name: str
    stamp: str
    encode: ViewEncoder


def encoders(inception: Path | None, dinov2: Path | None, device: torch.device) -> list[Encoder]:
    """The encoders with the given weights, or the built-in one if none are given.

    Raises:
        FewstepError: weights are not there or are of another kind.
    """
    found = []
    if inception is not None:
        found.append(_encoder(INCEPTION, inception, Inception(inception), device))
    if dinov2 is not None:
        found.append(_encoder(DINOV2, dinov2, Dinov2(dinov2), device))
    return found or [_encoder(BUILT_IN, None, None, device)]


def _encoder(name: str, path: Path | None, net: nn.Module | None, device: torch.device) -> Encoder:
    files = [] if path is None else sorted(path.iterdir()) if path.is_dir() else [path]
    stamp = str([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    encode = ViewEncoder(net)
    encode.to(device)
    return Encoder(name, stamp, encode)


class Inception(nn.Module):
    """Inception-v3 of FID: the TorchScript file that StyleGAN3 and clean-fid use, which resizes pictures itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise invalid("--inception", str(path), "the file inception-2015-12-05.pt; it is not there")
        try:
            self.net: Any = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise invalid("--inception", str(path), f"a TorchScript file ({first_line(error)})") from None

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to [B, 2048]."""
        features: Tensor = self.net((pictures * 255).round().to(torch.uint8), return_features=True)
        return features.float()


class Dinov2(nn.Module):
    """DINOv2 from a folder in Hugging Face's format: the class token after the last norm, at 224 pixels."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        if not (folder / "config.json").is_file():
            raise invalid("--dinov2", str(folder), "a folder with config.json and model.safetensors")
        transformers = need("transformers")
        try:
            self.net: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
        except (OSError, ValueError) as error:
            raise invalid("--dinov2", str(folder), f"a model of transformers ({first_line(error)})") from None
        if not str(self.net.config.model_type).startswith("dinov2"):
            raise FewstepError(f"--dinov2: {folder} is of type {self.net.config.model_type!r}; accepted: dinov2")

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to [B, F]."""
        sized = F.interpolate(pictures, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        mean, deviation = (sized.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        features: Tensor = self.net(pixel_values=(sized - mean) / deviation).pooler_output
        return features
