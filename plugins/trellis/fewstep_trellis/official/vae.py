"""What the autoencoders are trained on: voxels, averaged image features, renders with their cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from plyfile import PlyData, PlyParseError
from torch import Tensor

from fewstep_trellis.official.condition import Draw
from fewstep_trellis.official.files import (
    FEATURES,
    TRANSFORMS,
    VIEWS,
    VOXELS,
    ItemError,
    read_arrays,
    read_frames,
    read_picture,
)
from fewstep_trellis.official.table import Row

GRID = 64  # of voxels/ and features/
AXES = (1.0, -1.0, -1.0, 1.0)  # from Blender's camera axes (y up, z backward) to OpenCV's (y down, z forward)


def surface_grid(row: Row, resolution: int = GRID) -> Tensor:
    """Occupancy int64 [1, R, R, R] from the cell centres in ``voxels/``.

    Raises:
        ItemError: a missing or damaged file, or points outside the unit cube.
    """
    path = row.root / VOXELS / f"{row.sha256}.ply"
    try:
        vertex = PlyData.read(str(path))["vertex"]
        points = np.stack([vertex[axis] for axis in "xyz"], 1).astype(np.float32)
    except (OSError, ValueError, KeyError, PlyParseError) as error:
        raise ItemError(f"{path}: {type(error).__name__}: {error}") from None
    cells = torch.from_numpy((points + np.float32(0.5)) * np.float32(resolution)).int().long()
    if len(cells) == 0 or int(cells.min()) < 0 or int(cells.max()) >= resolution:
        raise ItemError(f"{path}: no points, or some outside; accepted: at least one, all inside [-0.5, 0.5)^3")
    grid = torch.zeros(1, *[resolution] * 3, dtype=torch.int64)
    grid[0, cells[:, 0], cells[:, 1], cells[:, 2]] = 1
    return grid


def image_features(row: Row, model: str, resolution: int = GRID) -> tuple[Tensor, Tensor]:
    """Voxels int32 [N, 3] and features float32 [N, C] of ``features/<model>/``.

    Below 64 the features of the n cells that fall together are summed and divided by n + 1, as in TRELLIS's own
    downsampling (a lone cell is halved), and voxels come sorted.

    Raises:
        ItemError: a missing or damaged file.
    """
    path = row.root / FEATURES / model / f"{row.sha256}.npz"
    indices, tokens = read_arrays(path, indices=(None, 3), patchtokens=(None, None))
    if len(indices) != len(tokens):
        raise ItemError(f"{path}: {len(indices)} voxels for {len(tokens)} features")
    coords, feats = torch.from_numpy(indices.astype("int32")), torch.from_numpy(tokens.astype("float32"))
    if resolution == GRID:
        return coords, feats
    cells, member = (coords // (GRID // resolution)).unique(dim=0, return_inverse=True)
    total = torch.zeros(len(cells), feats.shape[1]).index_add_(0, member, feats)
    return cells, total / (member.bincount(minlength=len(cells)) + 1)[:, None]


@dataclass(frozen=True)
class View:
    """A render and its file: ``image`` [3, S, S] and ``alpha`` [S, S] in [0, 1]; ``extrinsics`` [4, 4] from world to
    camera (OpenCV axes), ``intrinsics`` [3, 3] for a picture of width and height 1."""

    path: Path
    image: Tensor
    alpha: Tensor
    extrinsics: Tensor
    intrinsics: Tensor


def render_view(row: Row, size: int, draw: Draw) -> View:
    """One of the object's pictures in ``renders/``, drawn at random, with its camera.

    Raises:
        ItemError: a missing or damaged file.
    """
    folder = row.root / VIEWS / row.sha256
    frames = read_frames(folder)
    frame = frames[draw(len(frames))]
    path = folder / str(frame["file_path"])
    picture = read_picture(path)
    image, alpha = (_resized(part, size) for part in (picture.convert("RGB"), picture.getchannel("A")))
    try:
        extrinsics, intrinsics = camera_of(frame)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise ItemError(f"{folder / TRANSFORMS}: no camera of {path.name}: {error}") from None
    return View(path, image.permute(2, 0, 1), alpha, extrinsics, intrinsics)


def _resized(image: Image.Image, size: int) -> Tensor:
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.LANCZOS))).float() / 255


def camera_of(frame: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """``extrinsics`` and ``intrinsics`` of a view, by its entry in ``transforms.json``."""
    to_world = torch.tensor(frame["transform_matrix"], dtype=torch.float32) * torch.tensor(AXES)
    focal = 0.5 / math.tan(float(frame["camera_angle_x"]) / 2)
    intrinsics = torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]])
    return torch.inverse(to_world), intrinsics
