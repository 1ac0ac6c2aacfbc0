"""What a prepared set says about the surface inside each voxel: eleven bytes, the input of a structured-latent encoder.

TRELLIS averages DINOv2 features of 150 renderings over each voxel, which takes a gigabyte of weights and minutes per
object. Here, what such features would have to tell a decoder is measured directly: where the surface is (the signed
distance at the centres of the voxel's 8 parts) and its mean colour. It is deterministic, takes 0.3 s per object, and is
known in closed form for a sphere or a box.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep_shapes3d.data.mesh import Mesh
from fewstep_shapes3d.data.surface import Bytes, SurfaceField
from fewstep_shapes3d.data.voxels import Grid

PARTS, CHANNELS = 8, 11  # distances, then colour
RANGE, LEVELS, SHADES = 0.75, 24, 63  # distances in [-RANGE, RANGE] voxels in steps of 1/16; 6 bits per channel
MIRRORED = [4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10]  # x is the slowest axis of the parts


def describe(mesh: Mesh, grid: Grid) -> Bytes:
    """Codes uint8 [voxels, 11] of the voxels of ``grid``, in C order."""
    field = SurfaceField(mesh, grid)
    distance = (field.at_centres().clip(-RANGE, RANGE) + RANGE) / (2 * RANGE) * LEVELS
    codes: Bytes = np.rint(np.concatenate([distance, field.colours() * SHADES], 1)).astype(np.uint8)
    return codes


def features(codes: Bytes) -> Tensor:
    """Codes as floats [voxels, 11] in [-1, 1]: distances, relative to ``RANGE``, and colours."""
    top = torch.tensor([LEVELS] * PARTS + [SHADES] * 3)
    return torch.from_numpy(codes).float() / top * 2 - 1


def write_codes(path: Path, codes: Sequence[Bytes]) -> None:
    """Write all objects one after another into one ``.npz``, packed by LZMA (a third smaller than by numpy)."""
    joined = np.concatenate(codes)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, part in (("distance", joined[:, :PARTS]), ("colour", joined[:, PARTS:])):
            # A fixed date: the same input makes the same bytes.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_LZMA
            with file.open(member, "w") as out:
                np.lib.format.write_array(out, np.ascontiguousarray(part), allow_pickle=False)  # type: ignore[no-untyped-call]


def join_codes(arrays: dict[str, npt.NDArray[np.uint8]]) -> Bytes:
    """The inverse of :func:`write_codes` on the loaded arrays."""
    return np.concatenate([arrays["distance"], arrays["colour"]], 1)
