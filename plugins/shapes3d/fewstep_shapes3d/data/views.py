"""Textured pictures of a mesh from a few cameras: ray casting on the CPU, no OpenGL.

The light is at the camera and the ambient light has no direction, so flipping a picture gives exactly the picture of
the mirrored object. Rays are made here and not by open3d, whose ``up`` flips pictures in some versions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.errors import need
from fewstep_shapes3d.data.materials import Floats, Material
from fewstep_shapes3d.data.mesh import Mesh

Picture = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
SIZE, FOV, LAYERS = 224, 40.0, 6
_AMBIENT, _FLOOR, _STEP = 0.35, 0.12, 1e-4  # the floor keeps black objects visible on a black background


@dataclass(frozen=True)
class Camera:
    """Angles in degrees; azimuth 0 looks at the front (from -y), azimuth 90 from the object's +x side."""

    azimuth: float
    elevation: float

    @property
    def axes(self) -> Floats:
        """[3,3] rows: right, up and away from the object, in its coordinates."""
        a, e = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        away = np.array([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)])
        right = np.array([np.cos(a), np.sin(a), 0.0])
        return np.stack([right, np.cross(away, right), away])


def generator(key: str, seed: int) -> np.random.Generator:
    """The generator that draws an object's cameras: a function of its key and the seed only."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def draw_cameras(key: str, count: int, seed: int = 0) -> list[Camera]:
    """Cameras of one object: azimuth uniform in [-60, 60], elevation in [10, 40]; a function of key and seed only."""
    draw = generator(key, seed)
    return [Camera(float(draw.uniform(-60, 60)), float(draw.uniform(10, 40))) for _ in range(count)]


class Renderer:
    """Renders one mesh from several cameras; the ray-casting structure is built once."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.o3d = mesh, need("open3d")
        self.scene = self.o3d.t.geometry.RaycastingScene(nthreads=1)
        self.scene.add_triangles(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
        self.points = mesh.vertices[np.unique(mesh.faces)]

    def render(
        self, camera: Camera, size: int = SIZE, samples: int = 2, distance: float | None = None, fov: float = FOV
    ) -> Picture:
        """RGBA uint8 [size,size,4], not premultiplied.

        Args:
            samples: a pixel is the mean over ``samples`` x ``samples`` rays.
            distance: of the camera from the origin; by default the object fills the picture.
            fov: degrees from edge to edge.
        """
        edge = float(np.tan(np.deg2rad(fov / 2)))
        if distance is None:
            slope = edge * 0.97  # a thin margin, so that antialiasing does not cut the outline
            right, up, away = camera.axes
            sideways = np.maximum(np.abs(self.points @ right), np.abs(self.points @ up))
            distance = float((sideways / slope + self.points @ away).max())
        found = np.zeros((size, size, 4), np.uint8)
        rows, columns = self._window(camera, size, distance, edge)
        rays = self._rays(camera, size * samples, distance, edge, rows * samples, columns * samples)
        rgba = self._trace(rays).reshape(rows[1] - rows[0], samples, columns[1] - columns[0], samples, 4).mean((1, 3))
        colour = rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-6)
        both = np.concatenate([colour, rgba[..., 3:]], -1)
        found[slice(*rows), slice(*columns)] = np.round(both.clip(0, 1) * 255)
        return found

    def _window(self, camera: Camera, size: int, distance: float, edge: float) -> tuple[Ints, Ints]:
        """First and last (excluded) row, and column, of the pixels that can show the object."""
        right, up, away = camera.axes
        depth = distance - self.points @ away
        if depth.min() < 1e-3:  # the camera is inside the object
            return np.array([0, size]), np.array([0, size])
        found = []
        for axis in (-up, right):
            place = (self.points @ axis / (depth * edge) + 1) / 2 * size
            first = int(np.clip(np.floor(place.min()) - 1, 0, size - 1))
            found.append(np.array([first, int(np.clip(np.ceil(place.max()) + 1, first + 1, size))]))
        return found[0], found[1]

    def _rays(
        self, camera: Camera, size: int, distance: float, edge: float, rows: Ints, columns: Ints
    ) -> npt.NDArray[np.float32]:
        right, up, away = camera.axes
        eye = away * distance
        at = ((np.arange(size) + 0.5) / size * 2 - 1) * edge
        toward = -away + at[None, slice(*columns), None] * right - at[slice(*rows), None, None] * up
        toward /= np.linalg.norm(toward, axis=-1, keepdims=True)
        both = np.concatenate([np.broadcast_to(eye, toward.shape), toward], -1)
        rays: npt.NDArray[np.float32] = both.reshape(-1, 6).astype(np.float32)
        return rays

    def _trace(self, rays: npt.NDArray[np.float32]) -> Floats:
        """Premultiplied RGBA [rays,4]: front to back through glass and cut-out textures; alpha is coverage, 0 or 1."""
        colour, left = np.zeros((len(rays), 3)), np.ones(len(rays))
        live = np.arange(len(rays))
        for _ in range(LAYERS):
            hit = {k: v.numpy() for k, v in self.scene.cast_rays(self.o3d.core.Tensor(rays[live])).items()}
            met = np.isfinite(hit["t_hit"])
            live, distance = live[met], hit["t_hit"][met]
            if not len(live):
                break
            rgba = self._shade(hit["primitive_ids"][met].astype(np.int64), hit["primitive_uvs"][met], rays[live, 3:])
            colour[live] += (left[live] * rgba[:, 3])[:, None] * rgba[:, :3]
            left[live] *= 1 - rgba[:, 3]
            rays[live, :3] += rays[live, 3:] * (distance + _STEP)[:, None]
            live = live[left[live] > 0.02]
        seen = (left < 0.95).astype(np.float64)  # glass counts as seen: the conditioning crop needs an opaque outline
        return np.concatenate([colour / np.maximum(1 - left, 1e-6)[:, None] * seen[:, None], seen[:, None]], 1)

    def _shade(self, face: npt.NDArray[np.int64], weights: Floats, toward: npt.NDArray[np.float32]) -> Floats:
        a, b, c = self.mesh.vertices[self.mesh.faces[face]].transpose(1, 0, 2)
        normal = np.cross(b - a, c - a)
        facing = np.abs((normal * toward).sum(1)) / np.maximum(np.linalg.norm(normal, axis=1), 1e-20)
        rgba = look_up(self.mesh, face, weights)
        rgba[:, :3] = (_FLOOR + (1 - _FLOOR) * rgba[:, :3]) * (_AMBIENT + (1 - _AMBIENT) * facing)[:, None]
        return rgba


def look_up(mesh: Mesh, face: npt.NDArray[np.int64], weights: Floats) -> Floats:
    """RGBA [N,4] in [0,1] on the faces ``face`` [N] at barycentric weights [N,2] of their second and third corners."""
    corners = mesh.faces[face]
    uv, rgba, which = _between(mesh.uv[corners], weights), np.zeros((len(face), 4)), mesh.material[face]
    for number in np.unique(which):
        rgba[which == number] = _look_up(mesh.materials[number], uv[which == number])
    if mesh.tint is not None:
        rgba[:, :3] *= _between(mesh.tint[corners], weights)
    return rgba


def _between(values: Floats, weights: Floats) -> Floats:
    """Values [N,3,C] at the corners, interpolated: [N,C]."""
    first, second, third = values.transpose(1, 0, 2)
    blend: Floats = first + weights[:, :1] * (second - first) + weights[:, 1:] * (third - first)
    return blend


def _look_up(material: Material, uv: Floats) -> Floats:
    rgba: Floats = np.tile(material.colour, (len(uv), 1))
    if material.texture is not None:
        height, width = material.texture.shape[:2]
        u, v = np.nan_to_num(uv).T % 1
        texel = material.texture[((1 - v) * height).astype(int) % height, (u * width).astype(int) % width] / 255
        rgba[:, :3], rgba[:, 3] = texel[:, :3], texel[:, 3] * material.colour[3]
    return rgba
