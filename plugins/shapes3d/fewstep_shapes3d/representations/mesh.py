"""Triangle meshes as the extraction makes them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep_shapes3d.representations.moving import moved
from fewstep_shapes3d.representations.texture import Texture


@dataclass(frozen=True, eq=False, repr=False)
class Mesh:
    """Vertices, faces and what the vertices carry.

    Args:
        vertices: [V, 3] in [-0.5, 0.5]^3, z up.
        faces: int64 [F, 3], counter-clockwise seen from outside.
        vertex_attrs: [V, 6], colour in [0, 1] and normal, or [V, 3], the colour alone, or None.
        vertex_cube: int64 [V, 2], each dual vertex's cube (C order) and its number there; None if not known.
        regulariser: in training the extraction's own loss terms, weighted as published; their sum is its loss.
        corner_positions: in training [K, 3], the deformed corners of the grid, and
        corner_sdf: [K], their signed distances.
        material: [V, 3] in [0, 1], metallic, roughness and opacity, or None.
        texture: in place of the vertices' colours and material, or None.
    """

    vertices: Tensor
    faces: Tensor
    vertex_attrs: Tensor | None = None
    vertex_cube: Tensor | None = None
    regulariser: dict[str, Tensor] | None = None
    corner_positions: Tensor | None = None
    corner_sdf: Tensor | None = None
    material: Tensor | None = None
    texture: Texture | None = None

    def __repr__(self) -> str:
        return f"Mesh({len(self.vertices)} vertices, {len(self.faces)} faces)"

    @property
    def success(self) -> bool:
        """Whether there is anything to see."""
        return len(self.vertices) > 0 and len(self.faces) > 0

    @property
    def colours(self) -> Tensor | None:
        """[V, 3] in [0, 1], or None."""
        return None if self.vertex_attrs is None else self.vertex_attrs[:, :3]

    @property
    def face_normals(self) -> Tensor:
        """[F, 3, 3] the normal of each face at its three corners (unit length; zero for a degenerate face)."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
        return normal[:, None].expand(-1, 3, -1)

    def of_faces(self, faces: Tensor) -> Mesh:
        """The mesh with these faces [F, 3] and only the vertices that they use."""
        used, numbered = faces.unique(return_inverse=True)
        owned = {name: getattr(self, name) for name in ("vertices", "vertex_attrs", "vertex_cube", "material")}
        return replace(self, faces=numbered, **{k: value[used] for k, value in owned.items() if value is not None})

    def to(self, device: torch.device | str) -> Mesh:
        """The same mesh on another device."""
        return moved(self, device)
