"""One generated object: what was sampled, what can be decoded from it, and files and pictures of it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import FewstepError, invalid
from fewstep_shapes3d.export import turntable, write_glb, write_npz, write_ply
from fewstep_shapes3d.export.contact import contact_image, write_sheet
from fewstep_shapes3d.finish import Finish
from fewstep_shapes3d.representations import Gaussians, Mesh, RadianceField

if TYPE_CHECKING:
    from PIL import Image

MESH, GAUSSIANS, RADIANCE = "mesh", "gaussians", "radiance"
FINISHED = "finished mesh"
VIEWS, TILE = 8, 192  # of a turntable
SUFFIXES = (".glb", ".ply", ".npz", ".rf.npz", ".png")


@dataclass(eq=False, repr=False)
class Result:
    """One generated object. All tensors are on the CPU; decoding happens on first use and is kept.

    Args:
        name: what it was made from, for messages and labels.
        coords: int32 [T, 3], the occupied voxels (x, y, z).
        latents: [T, C] at these voxels.
        resolution: voxels on a side of the grid.
        decoders: what decodes the latents, by ``"mesh"``, ``"gaussians"``, ``"radiance"``.
        pictures: those of the prompt, as the encoder saw them (PIL).
        seconds: by stage; decoding adds to them.
        sample: which of the prompt's samples this is, from 0.
        record: how it was made, stored in its files; see :func:`fewstep_shapes3d.export.read_record`.
        finish: how its mesh is finished and written.
    """

    name: str
    coords: Tensor
    latents: Tensor
    resolution: int
    decoders: Mapping[str, Callable[[], Any]]
    pictures: Sequence[Any] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    sample: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)
    finish: Finish = field(default_factory=Finish)
    _decoded: dict[str, Any] = field(default_factory=dict)

    @property
    def occupancy(self) -> Tensor:
        """bool [R, R, R], the structure as a dense grid."""
        grid = torch.zeros([self.resolution] * 3, dtype=torch.bool)
        grid[tuple(self.coords.long().T)] = True
        return grid

    @property
    def mesh(self) -> Mesh:
        """The triangle mesh with vertex colours. Raises FewstepError where nothing decodes meshes."""
        found: Mesh = self.decode(MESH)
        return found

    @property
    def finished(self) -> Mesh:
        """The mesh simplified and textured as ``finish`` says; a texture takes the Gaussians' colours if there are any.

        Raises FewstepError as ``mesh`` does.
        """
        if FINISHED not in self._decoded:
            _, began = self.mesh, time.perf_counter()
            made = self._finished()
            if made is self.mesh:
                return made
            self._decoded[FINISHED] = made
            self.seconds["finishing"] = time.perf_counter() - began
        found: Mesh = self._decoded[FINISHED]
        return found

    def _finished(self) -> Mesh:
        if not self.finish.changes:
            return self.mesh
        from fewstep_shapes3d.finish.finish import finished  # imports SciPy

        gaussians = self.gaussians if self.finish.texture and GAUSSIANS in self.decoders else None
        return finished(self.mesh, self.finish, gaussians)

    @property
    def gaussians(self) -> Gaussians:
        """The 3-D Gaussians. Raises FewstepError where nothing decodes them."""
        found: Gaussians = self.decode(GAUSSIANS)
        return found

    @property
    def radiance(self) -> RadianceField:
        """The radiance field. Raises FewstepError where nothing decodes it."""
        found: RadianceField = self.decode(RADIANCE)
        return found

    @property
    def counts(self) -> dict[str, int]:
        """Number of voxels, and of the vertices, faces (of the finished mesh, if there is one) and Gaussians decoded so
        far."""
        found = {"voxels": len(self.coords)}
        if (mesh := self._decoded.get(FINISHED, self._decoded.get(MESH))) is not None:
            found |= {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}
        if (made := self._decoded.get(GAUSSIANS)) is not None:
            found["gaussians"] = len(made.raw_xyz)
        return found

    def decode(self, kind: str) -> Any:
        """The representation of this kind: "mesh", "gaussians" or "radiance".

        Raises:
            FewstepError: no decoder for it, or it cannot be loaded or run.
        """
        if kind not in self.decoders:
            raise FewstepError(f"no decoder for {kind!r} here; accepted: {', '.join(self.decoders) or 'none'}")
        if kind not in self._decoded:
            self._decoded[kind] = self.decoders[kind]()
        return self._decoded[kind]

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write a file, decoding what it needs; an existing file is replaced.

        Args:
            path: where to.
            format: "glb" (finished mesh), "ply" (Gaussians), "npz" (coords, latents, resolution, and the mesh if it was
                decoded), "rf" (radiance field, an .npz) or "png" (turntable); None: what the suffix says, .rf.npz for
                a radiance field.

        Raises:
            FewstepError: another suffix, a mesh without faces, or a place that cannot be written.
        """
        path = Path(path)
        if format is None:
            format = "rf" if path.name.lower().endswith(".rf.npz") else path.suffix[1:].lower()
        if format == "glb":
            record, finish = {**self.record, **self.finish.given}, self.finish
            return write_glb(self.finished, path, record, up=finish.up, size=finish.size)
        if format == "ply":
            return write_ply(self.gaussians, path, record=self.record)
        if format in ("npz", "rf"):
            arrays = self._arrays() if format == "npz" else self._radiance_arrays()
            return write_npz(arrays, path, self.record)
        if format == "png":
            return write_sheet(self.picture(), path)
        raise invalid("output", str(path), f"a name ending in {', '.join(SUFFIXES)}")

    def _arrays(self) -> dict[str, Tensor | None]:
        found: dict[str, Tensor | None] = {
            "coords": self.coords,
            "latents": self.latents,
            "resolution": torch.tensor(self.resolution),
        }
        if (mesh := self._decoded.get(MESH)) is not None:
            found |= {"vertices": mesh.vertices, "faces": mesh.faces, "vertex_attrs": mesh.vertex_attrs}
        return found

    def _radiance_arrays(self) -> dict[str, Tensor | None]:
        tensors = {key: value for key, value in vars(self.radiance).items() if isinstance(value, Tensor)}
        return {**tensors, "resolution": torch.tensor(self.radiance.resolution)}

    def picture(self) -> Image.Image:
        """A turntable of everything decoded so far (of the mesh, or else the Gaussians, if nothing was)."""
        if not {MESH, GAUSSIANS} & self._decoded.keys():
            self.decode(MESH if MESH in self.decoders else GAUSSIANS)
        found = sheet([self])
        assert found is not None
        return found

    def __repr__(self) -> str:
        return f"Result({self.name!r}, {len(self.coords)} voxels, decoded: {', '.join(self._decoded) or 'nothing yet'})"

    def _repr_png_(self) -> bytes:
        """The picture, for notebooks."""
        buffer = io.BytesIO()
        self.picture().save(buffer, format="PNG")
        return buffer.getvalue()


def sheet(results: Sequence[Result]) -> Image.Image | None:
    """The prompt's pictures, then a row of views for each decoded mesh and Gaussians of samples of one prompt.

    None if neither was decoded.
    """
    rows: list[tuple[str, list[Any]]] = []
    for kind, label in ((MESH, "mesh"), (GAUSSIANS, "Gaussians")):
        for result in results:
            if kind in result._decoded:
                made = result.finished if kind == MESH else result.gaussians
                name = f"{label} {result.sample + 1}" if len(results) > 1 else label
                rows.append((name, list(turntable(made, VIEWS, TILE))))
    if not rows:
        return None
    if pictures := results[0].pictures[:VIEWS]:
        rows.insert(0, ("condition", [np.asarray(one.resize((TILE, TILE))) for one in pictures]))
    return contact_image(rows, TILE)
