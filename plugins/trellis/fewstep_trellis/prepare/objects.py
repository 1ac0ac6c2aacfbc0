"""The files of one object that need no network: its voxels, the pictures it is seen in, and their cameras."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fewstep_shapes3d.data.jobs import Item
from fewstep_shapes3d.data.mesh import Mesh, normalise
from fewstep_shapes3d.data.sh3f import Skipped
from fewstep_shapes3d.data.views import Renderer
from fewstep_shapes3d.data.voxels import voxelise
from PIL import Image
from plyfile import PlyData, PlyElement

from fewstep.errors import FewstepError, need
from fewstep.files import Unwritable, new_file, new_folder
from fewstep_trellis.official.files import CONDITION_VIEWS, TRANSFORMS, VIEWS, VOXELS, picture_name
from fewstep_trellis.official.vae import GRID
from fewstep_trellis.prepare.cameras import Shot, condition_shots, feature_shots, transforms

MESH = "mesh.ply"
UNSEEN = "nothing of it can be seen"
SAMPLES = 1  # rays a pixel: pictures are shrunk before they are encoded
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pictures:
    """How many pictures of an object are rendered, and their size; TRELLIS's own numbers by default.

    Args:
        conditions: pictures that a flow is conditioned on.
        features: pictures that voxels get their features from; 0: none are rendered.
        condition_size, feature_size: pixels on a side.
        seed: of the cameras.
    """

    conditions: int = 24
    features: int = 150
    condition_size: int = 1024
    feature_size: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """A mesh file and the identifier of its object."""

    entry: Item
    sha256: str


def make_files(found: Found, root: Path, pictures: Pictures) -> Skipped | None:
    """Write what is missing of an object; the voxels come last. Returns why the object cannot be used, else None.

    Raises:
        Unwritable: the disk refuses.
    """
    name, entry = found.sha256, found.entry
    wanted = {VIEWS: pictures.features, CONDITION_VIEWS: pictures.conditions}
    missing = [folder for folder, count in wanted.items() if count and not (root / folder / name).exists()]
    voxels = root / VOXELS / f"{name}.ply"
    if not missing and voxels.exists():
        return None
    try:
        mesh = normalise(entry.load())
        grid, renderer = voxelise(mesh, GRID), Renderer(mesh)
        if CONDITION_VIEWS in missing:
            shots = condition_shots(name, pictures.conditions, pictures.seed)
            _draw(renderer, shots, pictures.condition_size, root / CONDITION_VIEWS / name)
        if VIEWS in missing:
            shots = feature_shots(name, pictures.features, pictures.seed)
            _draw(renderer, shots, pictures.feature_size, root / VIEWS / name, mesh)
        if not voxels.exists():
            _write_voxels(np.argwhere(grid), voxels)
    except Unwritable:
        raise
    except (FewstepError, RuntimeError, ValueError) as error:  # open3d and numpy, for a mesh they cannot take
        return Skipped(f"{entry.archive.name}: {entry.name} ({entry.model})", str(error))
    return None


def _write_voxels(cells: Ints, path: Path) -> None:
    """The centres of occupied cells [N, 3]."""
    if not len(cells):
        raise FewstepError(UNSEEN)
    rows = np.empty(len(cells), [(axis, "<f4") for axis in "xyz"])
    for axis, column in zip("xyz", cells.T, strict=True):
        rows[axis] = (column + 0.5) / GRID - 0.5
    with new_file(path) as temp:
        PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(str(temp))


def _draw(renderer: Renderer, shots: list[Shot], size: int, folder: Path, mesh: Mesh | None = None) -> None:
    """The pictures and their cameras, and the mesh itself where the layout has it; whole or not at all.

    A view that shows nothing, such as a sheet seen edge-on, is left out.
    """
    seen: list[Shot] = []
    with new_folder(folder) as part:
        for shot in shots:
            picture = renderer.render(shot.camera, size, SAMPLES, shot.distance, shot.fov)
            if picture[..., 3].any():
                Image.fromarray(picture).save(part / picture_name(len(seen)))
                seen.append(shot)
        if not seen:
            raise FewstepError(UNSEEN)
        (part / TRANSFORMS).write_text(json.dumps(transforms(seen)), encoding="utf-8")
        if mesh is not None:
            need("trimesh").Trimesh(mesh.vertices, mesh.faces, process=False).export(part / MESH)
