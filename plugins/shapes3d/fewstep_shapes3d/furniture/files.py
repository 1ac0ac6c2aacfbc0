"""Pieces of furniture as files: the meshes, and the pictures to generate them from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewstep.errors import invalid, need
from fewstep.files import check_place, new_folder
from fewstep_shapes3d.data.jobs import Progress
from fewstep_shapes3d.data.mesh import Mesh, normalise
from fewstep_shapes3d.data.views import Renderer, draw_cameras, look_up
from fewstep_shapes3d.export.glb import write_glb
from fewstep_shapes3d.furniture.catalogue import Piece
from fewstep_shapes3d.representations import Mesh as Coloured


def write_pieces(out: Path | str, count: int, seed: int = 0, progress: Progress | None = None) -> list[str]:
    """Write ``meshes/NAME.glb`` and ``pictures/NAME.png`` of the first pieces of a seed; returns their names.

    These are the test objects of every set that ``prepare_furniture`` makes with the seed, seen by the same cameras.

    Args:
        out: the folder to make. It must not exist.
        count: pieces.
        progress: called as ``progress(done, total, name)``.

    Raises:
        FewstepError: ``out`` exists or cannot be written, a value is out of range, or open3d is not installed.
    """
    need("open3d")
    if Path(out).exists():
        raise invalid("--out", str(out), "a folder that does not exist yet; nothing is overwritten")
    if count < 1:
        raise invalid("count", count, "1 or more")
    check_place("--out", Path(out))
    names = []
    with new_folder(Path(out)) as folder:
        (folder / "pictures").mkdir()
        for number in range(count):
            piece = Piece.draw(seed, number)
            mesh, name = normalise(piece.load()), piece.name.replace(" ", "-")
            write_glb(coloured(mesh), folder / "meshes" / f"{name}.glb")
            picture = Renderer(mesh).render(draw_cameras(piece.key, 1, seed)[0])
            Image.fromarray(picture).save(folder / "pictures" / f"{name}.png")
            names.append(name)
            if progress:
                progress(number + 1, count, name)
    return names


def coloured(mesh: Mesh) -> Coloured:
    """A mesh with colours at its vertices instead of materials: the mean over the faces that meet there."""
    total, times = np.zeros((len(mesh.vertices), 3)), np.zeros((len(mesh.vertices), 1))
    face = np.arange(len(mesh.faces))
    for corner, weights in enumerate(([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])):
        np.add.at(total, mesh.faces[:, corner], look_up(mesh, face, np.tile(weights, (len(face), 1)))[:, :3])
        np.add.at(times, mesh.faces[:, corner], 1.0)
    colours = torch.from_numpy(total / np.maximum(times, 1))
    return Coloured(torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces), colours)
