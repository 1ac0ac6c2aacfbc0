"""Meshes as .glb files with vertex colours: no texture, no unwrapping, nothing to compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.errors import FewstepError
from fewstep_shapes3d.export.files import check_finite, check_suffix, write_whole
from fewstep_shapes3d.representations import Mesh

GREY = 0.8
# glTF is y up: (x, y, z) to (x, z, -y), the other way round from the Gaussians' file.
AXES = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
MATERIAL = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}, "doubleSided": True}


def linear(colours: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """sRGB in [0, 1] to linear light, which is what glTF's COLOR_0 holds (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def write_glb(mesh: Mesh, path: Path) -> Path:
    """Write a mesh, y up, with its colours (grey where it has none) and smooth normals; not metallic, rough.

    Raises:
        FewstepError: for a mesh without faces or with vertices that are no numbers, another suffix, or a place that
            cannot be written.
    """
    check_suffix(Path(path), ".glb")
    if not mesh.success:
        raise FewstepError(f"{path}: the mesh has no faces, so there is nothing to write")
    check_finite(mesh.vertices, Path(path))
    data: bytes = _trimesh(mesh).export(file_type="glb", include_normals=True, tree_postprocessor=_with_material)
    return write_whole(Path(path), lambda temp: temp.write_bytes(data))


def _trimesh(mesh: Mesh) -> Any:
    import trimesh

    vertices = mesh.vertices.detach().cpu().double().numpy() @ AXES
    colours = np.full((len(vertices), 3), GREY) if mesh.colours is None else mesh.colours.detach().cpu().numpy()
    # 8 bits, which every reader takes: near black they are coarser than sRGB's, by at most 13 of its 255 steps.
    rgba = np.ones((len(vertices), 4))
    rgba[:, :3] = linear(colours.clip(0, 1))
    return trimesh.Trimesh(
        vertices,
        mesh.faces.cpu().numpy(),
        vertex_colors=(rgba * 255).round().astype(np.uint8),
        process=False,  # merging vertices would change the extraction's faces
    )


def _with_material(tree: dict[str, Any]) -> None:
    """glTF's default material is a mirror (metallic 1): vertex colours would come out black."""
    tree["materials"] = [MATERIAL]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive["material"] = 0
