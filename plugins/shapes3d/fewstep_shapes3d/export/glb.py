"""Meshes as .glb files, with vertex colours or a texture.

The file is glTF 2.0 in its binary container (Khronos, glTF 2.0 specification, "GLB File Format Specification").
"""

from __future__ import annotations

import io
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
from fewstep_shapes3d.representations import Mesh, Texture

GREY = 0.8
# glTF is y up: (x, y, z) to (x, z, -y), the opposite of the turn in the Gaussians' .ply.
AXES = {"y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), "z": np.eye(3)}
# glTF's default material is a mirror (metallic 1): vertex colours would come out black.
ROUGH = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
MAGIC, JSON, BINARY = b"glTF", b"JSON", b"BIN\0"
FLOAT, BYTE, INTEGER = 5126, 5121, 5125  # glTF's component types
VERTICES, INDICES = 34962, 34963  # its targets of a buffer view
LINEAR, MIPMAPS, CLAMP = 9729, 9987, 33071  # its texture filters and wrapping
SEE_THROUGH, MANY = 0.9, 0.01  # a material blends if more than the share MANY has an opacity below SEE_THROUGH


def linear(colours: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """sRGB in [0, 1] to linear light, which is what glTF's COLOR_0 holds (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def write_glb(
    mesh: Mesh, path: Path, record: Mapping[str, Any] | None = None, *, up: str = "y", size: float | None = None
) -> Path:
    """Write a mesh with its texture, or its vertices' colours (grey if it has none), and smooth normals.

    In glTF, vertices have colour and opacity, but metallic and roughness are one factor each for all. The factors are
    the means of the mesh's material; the values themselves go into the attributes ``_METALLIC`` and ``_ROUGHNESS``. A
    mesh without a material is rough and not metallic. A texture holds all four for each texel.

    Args:
        mesh: what to write, z up.
        path: where to.
        record: how it was made, for ``asset.extras``; :func:`fewstep_shapes3d.export.read_record` reads it.
        up: the file's axis that points up: "y", as the format says, or "z" for programs that expect it so.
        size: of the longest side, in metres; None: as the mesh is.

    Raises:
        FewstepError: for a mesh without faces or with vertices that are not finite, another suffix, or a place that
            cannot be written.
    """
    check_suffix(Path(path), ".glb")
    if not mesh.success:
        raise FewstepError(f"{path}: the mesh has no faces, so there is nothing to write")
    check_finite(mesh.vertices, Path(path))
    data = glb(mesh, record, up=up, size=size)
    return write_whole(Path(path), lambda temp: temp.write_bytes(data))


def glb(
    mesh: Mesh,
    record: Mapping[str, Any] | None = None,
    normals: bool = True,
    *,
    up: str = "y",
    size: float | None = None,
) -> bytes:
    """The content of such a file. Without ``normals`` it is smaller, and programs draw it with flat faces."""
    vertices, faces = mesh.vertices.detach().cpu().double(), mesh.faces.cpu()
    points = (vertices.numpy() @ AXES[up]).astype("<f4")
    if size is not None:
        points *= np.float32(size / np.ptp(points, axis=0).max())
    arrays = {"POSITION": (points, FLOAT, "VEC3")}
    if normals:
        turned = vertex_normals(vertices.float(), faces).double()
        turned[turned.norm(dim=1) < 0.5] = torch.eye(3, dtype=turned.dtype)[2]  # vertices without a face
        arrays["NORMAL"] = ((turned.numpy() @ AXES[up]).astype("<f4"), FLOAT, "VEC3")
    pictures: list[bytes] = []
    if mesh.texture is not None:
        row = np.zeros(len(mesh.texture.uv), np.int64)  # the vertex of each row of uv
        row[mesh.texture.corners.numpy().reshape(-1)] = faces.numpy().reshape(-1)
        arrays = {name: (values[row], *kind) for name, (values, *kind) in arrays.items()}
        arrays["TEXCOORD_0"] = (mesh.texture.uv.numpy().astype("<f4"), FLOAT, "VEC2")
        faces, pictures = mesh.texture.corners, _pictures(mesh.texture)
    else:
        arrays["COLOR_0"] = (_rgba(mesh), BYTE, "VEC4")
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
    for picture in pictures:
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": len(picture)})
        body += picture + bytes(-len(picture) % 4)
    accessors[0] |= {"min": arrays["POSITION"][0].min(0).tolist(), "max": arrays["POSITION"][0].max(0).tolist()}
    if "COLOR_0" in attributes:
        accessors[attributes["COLOR_0"]]["normalized"] = True
    primitive = {"attributes": attributes, "indices": len(attributes), "material": 0}
    tree: dict[str, Any] = {
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
    if pictures:
        first = len(views) - len(pictures)
        tree["images"] = [{"bufferView": first + i, "mimeType": "image/png"} for i in range(len(pictures))]
        tree["textures"] = [{"source": i, "sampler": 0} for i in range(len(pictures))]
        tree["samplers"] = [{"magFilter": LINEAR, "minFilter": MIPMAPS, "wrapS": CLAMP, "wrapT": CLAMP}]
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I", len(text)) + JSON + text + struct.pack("<I", len(body)) + BINARY + body
    return MAGIC + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def _material(material: torch.Tensor) -> npt.NDArray[np.float32]:
    """[2, V]: metallic and roughness."""
    return np.ascontiguousarray(material[:, :2].detach().cpu().float().numpy().clip(0, 1).T)


def _factors(mesh: Mesh) -> dict[str, Any]:
    """The glTF material: with the textures of :func:`_pictures`, or factors alone."""
    texture = mesh.texture
    if texture is not None:
        opacity = None if texture.material is None else texture.material[..., 2].float() / 255
        factors: dict[str, Any] = {"baseColorTexture": {"index": 0}}
        if texture.material is None:
            factors |= ROUGH
        else:
            factors["metallicRoughnessTexture"] = {"index": 1}
    elif mesh.material is None:
        opacity, factors = None, ROUGH
    else:
        opacity = mesh.material[:, 2]
        metallic, roughness = _material(mesh.material).mean(1).tolist()
        factors = {"metallicFactor": metallic, "roughnessFactor": roughness}
    blends = opacity is not None and float((opacity < SEE_THROUGH).float().mean()) > MANY
    return {"pbrMetallicRoughness": factors, "doubleSided": True, **({"alphaMode": "BLEND"} if blends else {})}


def _pictures(texture: Texture) -> list[bytes]:
    """PNGs of colour, with the opacity, and where there is a material of roughness (green) and metallic (blue)."""
    if texture.material is None:
        return [_png(texture.colour)]
    metallic, roughness, opacity = texture.material.split(1, -1)
    unused = torch.full_like(metallic, 255)
    return [_png(torch.cat([texture.colour, opacity], -1)), _png(torch.cat([unused, roughness, metallic], -1))]


def _png(texels: torch.Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(texels.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def _rgba(mesh: Mesh) -> npt.NDArray[np.uint8]:
    """[V, 4] linear, in 8 bits, which every reader takes; near black coarser than sRGB, by at most 13 of its 255
    steps."""
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
        ValueError, struct.error: it is not a .glb file.
    """
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    if data[:4] != MAGIC or data[16:20] != JSON:
        raise ValueError("not glTF in binary form")
    found: dict[str, Any] = json.loads(data[20 : 20 + length])
    return found
