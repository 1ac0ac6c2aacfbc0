"""Previews of generated objects: pictures from all sides on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep_shapes3d.export.camera import Camera
from fewstep_shapes3d.export.contact import Picture, contact_image, write_sheet
from fewstep_shapes3d.export.portrait import portrait
from fewstep_shapes3d.export.raster import render_mesh
from fewstep_shapes3d.export.splat import render_gaussians
from fewstep_shapes3d.representations import Gaussians, Mesh

FIRST = 30.0


def picture(thing: Mesh | Gaussians, azimuth: float, size: int = 256, samples: int = 2) -> npt.NDArray[np.float32]:
    """[size, size, 3] in [0, 1] from one side, as rendered for measures."""
    camera = Camera(azimuth, size=size)
    drawn = render_mesh(thing, camera, samples) if isinstance(thing, Mesh) else render_gaussians(thing, camera)
    found: npt.NDArray[np.float32] = drawn.numpy()
    return found


def turntable(thing: Mesh | Gaussians, views: int = 8, size: int = 256) -> list[Picture]:
    """Pictures for people from ``views`` evenly spaced azimuths."""
    azimuths = [FIRST + 360 * view / views for view in range(views)]
    if isinstance(thing, Mesh):
        return [portrait(thing, azimuth, size) for azimuth in azimuths]
    return [picture(thing, azimuth, size) for azimuth in azimuths]


def write_preview(rows: Sequence[tuple[str, Sequence[Picture]]], path: Path, tile: int = 256) -> Path:
    """A contact sheet with a row for each (label, pictures).

    Raises:
        FewstepError: for another suffix than .png, or a place that cannot be written.
    """
    return write_sheet(contact_image(rows, tile), Path(path))
