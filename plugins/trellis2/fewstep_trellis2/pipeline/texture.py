"""Texturing a given mesh: its dual grid is encoded to shape latents, then texture flow and texture decoder follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from fewstep_shapes3d.data.mesh import load_mesh, normalise
from fewstep_shapes3d.data.meshfiles import KINDS as SUFFIXES
from fewstep_shapes3d.data.meshfiles import UP
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.sparse.geometry import coords_of
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import invalid
from fewstep_trellis2.mesh.dual_grid import DualGrid
from fewstep_trellis2.mesh.voxelise import dual_grid_of
from fewstep_trellis2.pipeline.networks import Prompts
from fewstep_trellis2.pipeline.run import Object, Runner
from fewstep_trellis2.pipeline.spec import SHAPE_ENCODER, TEXTURE_DECODER
from fewstep_trellis2.vae.subdivision import guide_of

ROOM = 0.99999  # scale of the mesh in the cube, so that no vertex lies on a side


def given_mesh(path: Path) -> Mesh:
    """The mesh of a file, turned to z up, centred and scaled to the cube [-0.5, 0.5]^3.

    Raises:
        FewstepError: not a mesh file, or a mesh without extent.
    """
    suffix = path.suffix.lower()
    if suffix not in UP or not path.is_file():
        raise invalid("--mesh", str(path), f"a file in {SUFFIXES}")
    mesh = normalise(load_mesh(path, up=UP[suffix]))
    return Mesh(torch.from_numpy(mesh.vertices * ROOM).float(), torch.from_numpy(mesh.faces))


@dataclass
class Texturer(Runner):
    """Textures the mesh ``given``, by kind "512" or "1024".

    Args: as of ``Runner``, and
        given: the mesh in [-0.5, 0.5]^3.
    """

    given: Mesh = field(kw_only=True)

    @cached_property
    def _encoded(self) -> tuple[DualGrid, Packed, Tensor]:
        """The mesh's dual grid, the cells with latents, and the shape latents on them, on the CPU."""
        with self.clock("dual grid"):
            grid = dual_grid_of(self.given.vertices, self.given.faces, self.way.resolution)
        with self._guarded(), self._lent(SHAPE_ENCODER) as encoder, self.clock("shape encoder"):
            place, there = (part.to(self.device) for part in (grid.vertex, grid.intersected))
            shape, _, cells = encoder.encode(place, there, grid.layout.to(self.device))
        return grid, cells.to("cpu"), shape.cpu()

    def _object(self, number: int, prompts: Prompts, generator: torch.Generator, seed: int) -> Object:
        _, layout, shape = self._encoded
        texture = self._texture(shape, layout, prompts, generator, seed)
        return Object(number, layout, shape, texture, self.way.resolution)

    @torch.no_grad()
    def decode(self, one: Object) -> Mesh:
        """The mesh's dual grid with the texture's values at its vertices, on the CPU."""
        grid, layout = self._encoded[0], one.layout.to(self.device)
        with self._guarded(), self._lent(TEXTURE_DECODER) as decoder, self.clock("texture decoder"):
            guide = guide_of(layout, grid.layout.to(self.device), len(decoder.num_blocks) - 1)
            values = decoder(one.texture.to(self.device), layout, guide).features.cpu()
        with self.clock("mesh"):
            rows = order_of(grid.layout, guide[-1].layout.to("cpu"))
            mesh: Mesh = grid.meshes(one.resolution, (values[rows] * 0.5 + 0.5).clamp(0, 1))[0]
        return mesh


def order_of(wanted: Packed, there: Packed) -> Tensor:
    """The row of ``there`` for each row of ``wanted``, two orders of one object's voxels."""
    side = int(coords_of(wanted).max()) + 1
    keys = [(x * side + y) * side + z for x, y, z in (coords_of(part).long().unbind(1) for part in (wanted, there))]
    found = torch.empty_like(keys[0])
    found[keys[0].argsort()] = keys[1].argsort()
    return found
