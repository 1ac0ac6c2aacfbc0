"""One object of a folder as scoring sees it: points on its surface, four views, and whether its surface is closed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fewstep_shapes3d.data.mesh import EmptyMesh, Mesh, Up, load_mesh
from fewstep_shapes3d.data.views import Camera, Renderer
from fewstep_shapes3d.export.camera import Perspective
from fewstep_shapes3d.export.ply import read_ply
from fewstep_shapes3d.export.splat import render_gaussians
from fewstep_shapes3d.mesh.faces import sample, watertight
from fewstep_shapes3d.representations import Gaussians
from fewstep_shapes3d.score.alignment import Floats

# The views of TRELLIS's evaluation (arXiv 2412.01506): yaw, pitch, field of view in degrees; distance in cube sides.
AZIMUTHS, ELEVATION, FOV, DISTANCE = (0.0, 90.0, 180.0, 270.0), 30.0, 40.0, 2.0
PIXELS, SAMPLES = 256, 2
SOLID = 0.1  # opacity from which a Gaussian counts as surface
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Seeing:
    """How objects are read: number of ``points`` on the surface, drawn with ``seed``, and whether to render views."""

    points: int
    seed: int
    views: bool


def is_gaussians(path: Path) -> bool:
    """Whether a file is a .ply of 3-D Gaussians."""
    if path.suffix.lower() != ".ply":
        return False
    with path.open("rb") as file:
        head = file.read(8192).partition(b"end_header")[0]
    return b"property float f_dc_0" in head and b"property float opacity" in head


def read_object(path: Path, up: Up, seeing: Seeing, box: Floats | None = None) -> Arrays:
    """Points float32 ``points`` [K, 3] and other points of the same surface ``again`` [K, 3]; ``views`` uint8
    [V, 3, S, S] on white; ``box`` [2, 3], its bounds in the file's units, z up; ``faces``, ``parts`` and
    ``watertight``, which are NaN for Gaussians.

    Args:
        path: a mesh in any format that is read, or a .ply of Gaussians.
        up: the axis that points up in a mesh. Gaussians have -y up, as TRELLIS writes them.
        box: bounds to scale by, so that their centre is at 0 and their longest side is 1; by default the object's own.

    Raises:
        FewstepError: the file cannot be read.
        EmptyMesh: it holds no surface.
    """
    return (
        _of_gaussians(read_ply(path), seeing, box)
        if is_gaussians(path)
        else _of_mesh(load_mesh(path, up=up), seeing, box)
    )


def _scaling(box: Floats, name: str) -> tuple[Floats, float]:
    """Centre and longest side."""
    size = float((box[1] - box[0]).max())
    if not size > 0:
        raise EmptyMesh(f"the {name} has no extent: all its points coincide")
    return box.mean(0), size


def _of_mesh(mesh: Mesh, seeing: Seeing, box: Floats | None) -> Arrays:
    used = mesh.vertices[np.unique(mesh.faces)]
    own = np.stack([used.min(0), used.max(0)])
    centre, size = _scaling(own if box is None else box, "model")
    mesh = replace(mesh, vertices=(mesh.vertices - centre) / size)
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    if not np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() > 0:
        raise EmptyMesh("the model has no area: its faces are lines or points")
    points, again = (
        sample(mesh.vertices, mesh.vertices, mesh.faces, seeing.points, seed)[0].astype(np.float32)
        for seed in (2 * seeing.seed, 2 * seeing.seed + 1)
    )
    values = {"points": points, "again": again, "box": own, **_topology(mesh)}
    if seeing.views:
        renderer = Renderer(mesh)
        views = [renderer.render(Camera(azimuth, ELEVATION), PIXELS, SAMPLES, DISTANCE) for azimuth in AZIMUTHS]
        values["views"] = _on_white(np.stack(views))
    return values


def _topology(mesh: Mesh) -> Arrays:
    """Counts of the mesh with coinciding vertices merged: files repeat them at seams of normals and textures."""
    from scipy.sparse import coo_array  # type: ignore[import-untyped,unused-ignore]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped,unused-ignore]

    places, number = np.unique(mesh.vertices, axis=0, return_inverse=True)
    a, b, c = number.reshape(-1)[mesh.faces].T
    faces = np.stack([a, b, c], 1)[(a != b) & (b != c) & (c != a)]
    ends = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_array((np.ones(len(ends)), ends.T), shape=(len(places),) * 2)
    _, part = connected_components(graph, directed=False)
    found = {"faces": len(faces), "parts": len(np.unique(part[faces])), "watertight": watertight(faces)}
    return {name: np.array(float(value)) for name, value in found.items()}


def _of_gaussians(gaussians: Gaussians, seeing: Seeing, box: Floats | None) -> Arrays:
    opacity = gaussians.opacity[:, 0].double().numpy()
    solid = np.flatnonzero(opacity >= SOLID)
    places = gaussians.xyz.double().numpy()[solid]
    if not len(places) or not np.isfinite(places).all():
        raise EmptyMesh(
            f"no Gaussian has an opacity of {SOLID:g} or more" if not len(places) else "positions are not finite"
        )
    own = np.stack([places.min(0), places.max(0)])
    centre, size = _scaling(own if box is None else box, "set of Gaussians")
    weights = opacity[solid] / opacity[solid].sum()
    points, again = (
        ((places[np.random.default_rng(seed).choice(len(places), seeing.points, p=weights)] - centre) / size)
        for seed in (2 * seeing.seed, 2 * seeing.seed + 1)
    )
    nothing = np.array(np.nan)
    values: Arrays = {"points": points.astype(np.float32), "again": again.astype(np.float32), "box": own}
    values |= {"faces": nothing, "parts": nothing, "watertight": nothing}
    if seeing.views:
        moved = (gaussians.xyz - torch.from_numpy(centre).float()) / size
        scaled = replace(gaussians, raw_xyz=moved + 0.5, raw_scaling=gaussians.raw_scaling - float(np.log(size)))
        cameras = [Perspective(azimuth, ELEVATION, PIXELS, DISTANCE, FOV) for azimuth in AZIMUTHS]
        views = torch.stack([render_gaussians(scaled, camera) for camera in cameras])
        values["views"] = (views.permute(0, 3, 1, 2) * 255).round().to(torch.uint8).numpy()
    return values


def _on_white(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[V, H, W, 4] to [V, 3, H, W]."""
    alpha = rgba[..., 3:] / 255
    white: npt.NDArray[np.uint8] = (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return np.ascontiguousarray(white.transpose(0, 3, 1, 2))
