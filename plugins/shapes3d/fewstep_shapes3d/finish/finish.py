"""From a generated mesh to one for other programs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fewstep.errors import need
from fewstep_shapes3d.finish.options import Finish
from fewstep_shapes3d.finish.paint import paint_of
from fewstep_shapes3d.finish.repair import distinct, repaired
from fewstep_shapes3d.finish.texture import textured
from fewstep_shapes3d.representations import Gaussians, Mesh


def finished(mesh: Mesh, options: Finish, gaussians: Gaussians | None = None) -> Mesh:
    """The mesh repaired, simplified and textured as ``options`` say; unchanged if they ask for neither.

    Args:
        mesh: as it was extracted, on the CPU; one without faces, or with none after the repair, stays as it is.
        options: what to do.
        gaussians: of the same object, for the texture's colours; None: the mesh's own.
    """
    if not (options.changes and mesh.success):
        return mesh
    whole = repaired(mesh)
    return finished_as(whole, whole, options, gaussians) if whole.success else mesh


def finished_as(made: Mesh, whole: Mesh, options: Finish, gaussians: Gaussians | None = None) -> Mesh:
    """A mesh simplified as ``options`` say, with the values of the nearest points of another mesh of the same surface.

    Args:
        made: gives the vertices and faces.
        whole: gives the values, at its vertices.
        options, gaussians: as of ``finished``.
    """
    same, made = made is whole, simplified(made, options.simplify) if options.simplify else made
    if options.texture:
        return textured(made, options.texture, paint_of(whole, gaussians))
    return made if same and not options.simplify else _coloured(made, whole)


def simplified(mesh: Mesh, share: float) -> Mesh:
    """Remove this share of the faces, by quadric error metrics (Garland and Heckbert 1997), and all values.

    A mesh of so few faces that none would be left keeps them.
    """
    simplify = need("fast_simplification").simplify
    places, faces = simplify(mesh.vertices.double().numpy(), mesh.faces.numpy().astype(np.int32), share)
    vertices = torch.from_numpy(places).to(mesh.vertices.dtype)
    made = distinct(Mesh(vertices, torch.from_numpy(faces.astype(np.int64))))
    return made if made.success else Mesh(mesh.vertices, mesh.faces)


def _coloured(made: Mesh, whole: Mesh) -> Mesh:
    """``made`` with values at its vertices from the nearest points of ``whole``."""
    if whole.colours is None:
        return made
    values = paint_of(whole)(made.vertices)
    return replace(made, vertex_attrs=values[:, :3], material=values[:, 3:] if whole.material is not None else None)
