"""Meshes as .glb files with vertex colours: no texture, no unwrapping, nothing to compile.

The file is glTF 2.0 in its binary container (Khronos, glTF 2.0 specification, "GLB File Format Specification").
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fewstep.errors import FewstepError
from fewstep_shapes3d.export.files import check_finite, check_suffix, write_whole
from fewstep_shapes3d.export.raster import vertex_normals
from fewstep_shapes3d.representations import Mesh

GREY = 0.8
# glTF is y up: (x, y, z) to (x, z, -y), the other way round from the Gaussians' file.
AXES = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
# glTF's default material is a mirror (metallic 1): vertex colours would come out black.
MATERIAL = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}, "doubleSided": True}
MAGIC, JSON, BINARY = b"glTF", b"JSON", b"BIN\0"
FLOAT, BYTE, INTEGER = 5126, 5121, 5125  # glTF's component types
VERTICES, INDICES = 34962, 34963  # and its targets of a buffer view


def linear(colours: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """sRGB in [0, 1] to linear light, which is what glTF's COLOR_0 holds (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def write_glb(mesh: Mesh, path: Path, record: Mapping[str, Any] | None = None) -> Path:
    """Write a mesh, y up, with its colours (grey where it has none) and smooth normals.

    glTF knows a colour and an opacity at each vertex, but one metallic and one roughness factor for all. These are the
    means of the mesh's material, whose own values are beside them in the attributes ``_METALLIC`` and ``_ROUGHNESS``;
    a mesh without a material is not metallic, and rough.

    Args:
        mesh: what to write.
        path: where to.
        record: how it was made, for ``asset.extras``; :func:`fewstep_shapes3d.export.read_record` reads it.

    Raises:
        FewstepError: for a mesh without faces or with vertices that are no numbers, another suffix, or a place that
            cannot be written.
    """
    check_suffix(Path(path), ".glb")
    if not mesh.success:
        raise FewstepError(f"{path}: the mesh has no faces, so there is nothing to write")
    check_finite(mesh.vertices, Path(path))
    data = glb(mesh, record)
    return write_whole(Path(path), lambda temp: temp.write_bytes(data))


def glb(mesh: Mesh, record: Mapping[str, Any] | None = None, normals: bool = True) -> bytes:
    """The content of such a file. Without ``normals`` it is smaller, and programs draw it with flat faces."""
    vertices, faces = mesh.vertices.detach().cpu().double(), mesh.faces.cpu()
    points = (vertices.numpy() @ AXES).astype("<f4")
    arrays = {"POSITION": (points, FLOAT, "VEC3"), "COLOR_0": (_rgba(mesh), BYTE, "VEC4")}
    if normals:
        turned = (vertex_normals(vertices.float(), faces).double().numpy() @ AXES).astype("<f4")
        arrays["NORMAL"] = (turned, FLOAT, "VEC3")
    if mesh.material is not None:
        for name, values in zip(("_METALLIC", "_ROUGHNESS"), _material(mesh.material), strict=True):
            arrays[name] = (values, FLOAT, "SCALAR")
    attributes = {name: number for number, name in enumerate(arrays)}
    arrays["indices"] = (faces.numpy().astype("<u4").reshape(-1), INTEGER, "SCALAR")
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    body = b""
    for array, component, kind in arrays.values():
        target = INDICES if component == INTEGER else VERTICES
        accessors.append({"bufferView": len(views), "componentType": component, "count": len(array), "type": kind})
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": array.nbytes, "target": target})
        body += array.tobytes()  # every array's size is a multiple of 4 bytes, as the format asks
    accessors[0] |= {"min": points.min(0).tolist(), "max": points.max(0).tolist()}
    accessors[1]["normalized"] = True
    primitive = {"attributes": attributes, "indices": len(attributes), "material": 0}
    tree = {
        "asset": {"version": "2.0", "generator": "fewstep", "extras": dict(record or {})},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [_factors(mesh)],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(body)}],
    }
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I", len(text)) + JSON + text + struct.pack("<I", len(body)) + BINARY + body
    return MAGIC + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def _material(material: torch.Tensor) -> npt.NDArray[np.float32]:
    """[2, V]: metallic and roughness."""
    return np.ascontiguousarray(material[:, :2].detach().cpu().float().numpy().clip(0, 1).T)


def _factors(mesh: Mesh) -> dict[str, Any]:
    if mesh.material is None:
        return MATERIAL
    metallic, roughness = _material(mesh.material).mean(1).tolist()
    return MATERIAL | {"pbrMetallicRoughness": {"metallicFactor": metallic, "roughnessFactor": roughness}}


def _rgba(mesh: Mesh) -> npt.NDArray[np.uint8]:
    """[V, 4] linear, of 8 bits, which every reader takes: near black they are coarser than sRGB's, by at most 13 of its
    255 steps."""
    count = len(mesh.vertices)
    colours = torch.full((count, 3), GREY) if mesh.colours is None else mesh.colours.detach().cpu()
    rgba = np.ones((count, 4))
    rgba[:, :3] = linear(colours.double().numpy().clip(0, 1))
    if mesh.material is not None:
        rgba[:, 3] = mesh.material[:, 2].detach().cpu().double().numpy().clip(0, 1)
    found: npt.NDArray[np.uint8] = (rgba * 255).round().astype(np.uint8)
    return found


def read_tree(path: Path) -> dict[str, Any]:
    """The JSON chunk of a .glb file.

    Raises:
        ValueError, struct.error: it is none.
    """
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    if data[:4] != MAGIC or data[16:20] != JSON:
        raise ValueError("no glTF in binary form")
    found: dict[str, Any] = json.loads(data[20 : 20 + length])
    return found
