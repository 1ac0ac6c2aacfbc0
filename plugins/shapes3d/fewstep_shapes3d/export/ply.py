"""Gaussians as the standard 3DGS .ply file, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.errors import FewstepError, invalid
from fewstep_shapes3d.export.files import check_finite, check_suffix, write_whole
from fewstep_shapes3d.representations import Gaussians

Floats = npt.NDArray[np.float32]

# A quarter turn about x, (x, y, z) to (x, -z, y): what TRELLIS writes, and viewers of such files expect.
TURN = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
_HALF = math.sqrt(0.5)
_TURN_QUATERNION = (_HALF, _HALF, 0.0, 0.0)
COMMENT = "fewstep "  # before a record in JSON
COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *("f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)


def _times(p: Tensor, q: Tensor) -> Tensor:
    """The product of quaternions (w, x, y, z), [..., 4]."""
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ],
        -1,
    )


def ply_table(gaussians: Gaussians, *, turn: bool = True) -> Floats:
    """[N, 17] the file's columns.

    The opacity's logit is taken before the sigmoid: where the opacity rounds to 1, this is the true finite logit, not
    the inf of the published writer.

    Args:
        gaussians: to write.
        turn: rotate by a quarter turn about x, as TRELLIS does; otherwise as they are, with quaternions not normalised.
    """
    xyz, rotation = gaussians.xyz, gaussians.unnormalised_rotation
    if turn:
        xyz = xyz @ xyz.new_tensor(TURN).T
        rotation = _times(rotation.new_tensor(_TURN_QUATERNION), gaussians.rotation)
    colour = gaussians.features_dc.mT.flatten(1)
    columns = [xyz, torch.zeros_like(xyz), colour, gaussians.opacity_logit, gaussians.scaling.log(), rotation]
    table: Floats = torch.cat(columns, 1).detach().cpu().float().numpy()
    return table


def write_ply(gaussians: Gaussians, path: Path, *, turn: bool = True, record: Mapping[str, Any] | None = None) -> Path:
    """Write a binary .ply with one element ``vertex`` of 17 float32 properties; see :func:`ply_table`.

    A ``record`` of how they were made becomes a comment; :func:`fewstep_shapes3d.export.read_record` reads it.

    Raises:
        FewstepError: for no Gaussians or values that are not finite, another suffix, or a place that cannot be written.
    """
    from plyfile import PlyData, PlyElement

    check_suffix(Path(path), ".ply")
    if not len(gaussians):
        raise FewstepError(f"{path}: there are no Gaussians to write")
    table = ply_table(gaussians, turn=turn)
    check_finite(torch.from_numpy(table), Path(path))
    rows: Any = np.ascontiguousarray(table).view([(name, "<f4") for name in COLUMNS])
    comments = [COMMENT + json.dumps(dict(record))] if record else []
    data = PlyData([PlyElement.describe(rows[:, 0], "vertex")], byte_order="<", comments=comments)
    return write_whole(Path(path), lambda temp: data.write(str(temp)))


def read_ply(path: Path, *, turn: bool = True, minimum_kernel_size: float = 0.0) -> Gaussians:
    """Gaussians from a 3DGS .ply file: the inverse of :func:`write_ply` with the same arguments.

    Scales below ``minimum_kernel_size`` are raised to it.

    Raises:
        FewstepError: for a missing file, another format, or missing properties.
    """
    table = torch.from_numpy(_read(Path(path)))
    xyz, colour, opacity, scale, rotation = (table[:, a:b] for a, b in ((0, 3), (6, 9), (9, 10), (10, 13), (13, 17)))
    if turn:
        xyz = xyz @ xyz.new_tensor(TURN)
        back = rotation.new_tensor(_TURN_QUATERNION) * rotation.new_tensor([1.0, -1.0, -1.0, -1.0])
        rotation = _times(back, F.normalize(rotation, dim=-1))
    own = (scale.exp().square() - minimum_kernel_size**2).clamp(min=1e-12).sqrt()
    return Gaussians(
        xyz + 0.5,
        colour[:, None],
        own.log(),
        rotation - rotation.new_tensor([1.0, 0.0, 0.0, 0.0]),
        opacity,
        minimum_kernel_size=minimum_kernel_size,
        scaling_bias=1.0,
        opacity_bias=0.5,
        scaling_activation="exp",
    )


def _read(path: Path) -> Floats:
    from plyfile import PlyData, PlyParseError

    if not path.is_file():
        raise invalid("ply file", str(path), "a file that exists")
    try:
        vertex = PlyData.read(str(path))["vertex"]
        return np.stack([np.asarray(vertex[name], dtype=np.float32) for name in COLUMNS], 1)
    except (PlyParseError, ValueError, KeyError) as error:
        raise invalid("ply file", str(path), f"a 3DGS file with {', '.join(COLUMNS)} ({error})") from None
