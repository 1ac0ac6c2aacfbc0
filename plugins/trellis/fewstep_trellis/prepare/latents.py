"""Latents of both stages from an object's voxels and pictures, by the encoders that TRELLIS publishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import invalid
from fewstep.files import new_file
from fewstep_trellis.conditioning.dino import DinoConditioner
from fewstep_trellis.conditioning.factory import DINO, image_conditioner
from fewstep_trellis.conditioning.protocol import OPTION_IMAGE
from fewstep_trellis.flow import load_as
from fewstep_trellis.latents import encode, encode_surfaces
from fewstep_trellis.models import SLatEncoder, SparseStructureEncoder
from fewstep_trellis.models.precision import HalfTorso
from fewstep_trellis.official.config import IMAGE_ENCODER
from fewstep_trellis.official.files import LATENTS, STRUCTURE, VIEWS, read_frames, read_picture
from fewstep_trellis.official.table import Row
from fewstep_trellis.official.vae import GRID, camera_of, surface_grid
from fewstep_trellis.pipeline.source import Source, checkpoint, open_source

PUBLISHED = "microsoft/TRELLIS-image-large"
STRUCTURE_ENCODER, LATENT_ENCODER = "ckpts/ss_enc_conv3d_16l8_fp16", "ckpts/slat_enc_swin8_B_64l8_fp16"
LARGE = 1024  # channels of the published image encoder, wherever its weights are
CHUNK = 4  # pictures at a time
Arrays = dict[str, npt.NDArray[Any]]
M = TypeVar("M", bound=HalfTorso)


@dataclass(frozen=True)
class Kind:
    """One kind of latents: the folder in the root, and what makes the arrays of an object's file."""

    folder: str
    make: Callable[[Row], Arrays]

    def write(self, row: Row) -> None:
        """The file of an object, unless it is there. Raises ItemError: what it is made from cannot be read."""
        path = row.root / self.folder / f"{row.sha256}.npz"
        if not path.exists():
            arrays = self.make(row)
            with new_file(path) as temp:
                np.savez_compressed(temp, **arrays)  # type: ignore[arg-type]


def structure_latents(encoders: str, device: torch.device) -> Kind:
    """Latents of occupancy, by the structure encoder of a folder or hub repository."""
    source = opened(encoders)
    encoder = _loaded(SparseStructureEncoder, source, STRUCTURE_ENCODER, device)

    def make(row: Row) -> Arrays:
        return {"mean": encode(encoder, surface_grid(row)[None].float())[0].numpy()}

    return Kind(f"{STRUCTURE}/{Path(STRUCTURE_ENCODER).name}", make)


def structured_latents(encoders: str, image_encoder: str, device: torch.device) -> Kind:
    """Latents on voxels, by the SLat encoder of the same place, from features of this image encoder."""
    encoder = _loaded(SLatEncoder, opened(encoders), LATENT_ENCODER, device)
    looker = image_conditioner(image_encoder)
    if not isinstance(looker, DinoConditioner):
        raise invalid(OPTION_IMAGE, image_encoder, f"a DINOv2 with registers, such as {', '.join(DINO)}")
    if looker.channels != (wanted := encoder.args["in_channels"]):
        raise invalid(
            OPTION_IMAGE, f"{image_encoder}, {looker.channels} channels", f"{wanted}, as {LATENT_ENCODER} has"
        )
    looker.to(device)

    def make(row: Row) -> Arrays:
        coords = surface_grid(row)[0].nonzero()
        found = voxel_features(row, looker, coords).half().float()  # as TRELLIS stores them
        (feats,) = encode_surfaces(encoder, [(coords, found)])
        return {"coords": coords.numpy().astype(np.uint8), "feats": feats.numpy()}

    name = IMAGE_ENCODER if looker.channels == LARGE else Path(image_encoder).name
    return Kind(f"{LATENTS}/{name}_{Path(LATENT_ENCODER).name}", make)


def opened(encoders: str) -> Source:
    """The place of the encoders. Raises FewstepError if it holds none."""
    return open_source(encoders, "--encoders", f"{STRUCTURE_ENCODER}.json")


def voxel_features(row: Row, encoder: DinoConditioner, coords: Tensor) -> Tensor:
    """Features [N, C] of cells [N, 3]: the mean, over all pictures in ``renders/``, of the image features at their
    projected centres. As in TRELLIS, occlusion is ignored.

    Raises:
        ItemError: a picture or its camera cannot be read.
    """
    folder = row.root / VIEWS / row.sha256
    frames, device = read_frames(folder), next(encoder.parameters()).device
    centres = (coords.float() + 0.5) / GRID - 0.5
    total = torch.zeros(len(coords), encoder.channels, device=device)
    side = encoder.size // encoder.patch
    for start in range(0, len(frames), CHUNK):
        chunk = frames[start : start + CHUNK]
        pictures = torch.stack([_on_black(read_picture(folder / frame["file_path"]), encoder.size) for frame in chunk])
        tokens = encoder.prenorm(pictures.to(device))[:, -(side**2) :]
        maps = tokens.mT.unflatten(2, (side, side))
        places = torch.stack([project(centres, *camera_of(frame)) for frame in chunk]) * 2 - 1
        seen = F.grid_sample(maps, places[:, None].to(device), align_corners=False)
        total += seen[:, :, 0].sum(0).T
    return (total / len(frames)).cpu()


def project(points: Tensor, extrinsics: Tensor, intrinsics: Tensor) -> Tensor:
    """Where points [N, 3] are in a picture: [N, 2], column and row, from 0 to 1."""
    seen = (points @ extrinsics[:3, :3].T + extrinsics[:3, 3]) @ intrinsics.T
    return seen[:, :2] / seen[:, 2:]


def _on_black(picture: Image.Image, size: int) -> Tensor:
    """[3, S, S] in [0, 1]."""
    rgba = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)).astype(np.float32) / 255
    return torch.from_numpy(rgba[..., :3] * rgba[..., 3:]).permute(2, 0, 1)


def _loaded(wanted: type[M], source: Source, value: str, device: torch.device) -> M:
    """An encoder, in float32: half precision in the torso is for training speed, and slow on a CPU."""
    model = load_as(wanted, checkpoint(source, value)).eval().requires_grad_(False)
    model.convert_to_fp32()
    return model.to(device)
