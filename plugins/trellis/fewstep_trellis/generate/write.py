"""An object's files: meshes, Gaussians, arrays, and one preview of all samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fewstep_shapes3d.export import turntable, write_glb, write_npz, write_ply, write_preview

from fewstep.benchmark.contact import Picture
from fewstep_trellis.generate.outputs import SUFFIXES, Target
from fewstep_trellis.generate.plan import DECODERS
from fewstep_trellis.pipeline.objects import Objects
from fewstep_trellis.pipeline.prompt import Prompt, Unusable
from fewstep_trellis.pipeline.spec import GAUSSIANS, MESH

VIEWS, TILE = 8, 192


def write_objects(objects: Objects, target: Target, formats: list[str]) -> list[Path]:
    """Write every sample in every format.

    Raises:
        Unusable: a mesh without faces; every other file is written first.
        FewstepError: a place that cannot be written.
    """
    written, faceless = [], []
    for row, number in enumerate(objects.numbers):
        for name in formats:
            path = target.path(number, SUFFIXES[name])
            if name == "glb" and not objects.decoded[MESH][row].success:
                faceless.append(str(path))
            else:
                written.append(_write(objects, row, name, path))
    if faceless:
        raise Unusable(f"{', '.join(faceless)}: the mesh came out without faces; try another --seed or more --steps")
    return written


def _write(objects: Objects, row: int, name: str, path: Path) -> Path:
    if name == "npz":
        return write_npz(_arrays(objects, row), path)
    made: Any = objects.decoded[DECODERS[name]][row]
    if name == "glb":
        return write_glb(made, path)
    if name == "ply":
        return write_ply(made, path)
    tensors = {key: value for key, value in vars(made).items() if isinstance(value, torch.Tensor)}
    return write_npz({**tensors, "resolution": torch.tensor(made.resolution)}, path)


def _arrays(objects: Objects, row: int) -> dict[str, torch.Tensor | None]:
    """Voxels, latents, and the mesh where one was decoded."""
    latents, layout = objects.layout.select(objects.latents, torch.tensor([row]))
    found = {"coords": layout.coords, "latents": latents, "resolution": torch.tensor(objects.resolution)}
    if MESH in objects.decoded:
        mesh = objects.decoded[MESH][row]
        found |= {"vertices": mesh.vertices, "faces": mesh.faces, "vertex_attrs": mesh.vertex_attrs}
    return found


def write_turntable(objects: Objects, prompt: Prompt, path: Path) -> Path | None:
    """The pictures of the prompt, then a row of views for each sample; None where nothing was decoded to look at.

    Raises:
        FewstepError: a place that cannot be written.
    """
    rows: list[tuple[str, list[Picture]]] = []
    if prompt.pictures:
        rows.append(("condition", [np.asarray(one.resize((TILE, TILE))) for one in prompt.pictures[:VIEWS]]))
    for role, name in ((MESH, "mesh"), (GAUSSIANS, "Gaussians")):
        for number, made in zip(objects.numbers, objects.decoded.get(role, []), strict=False):
            label = f"{name} {number + 1}" if len(objects.numbers) > 1 else name
            rows.append((label, list(turntable(made, VIEWS, TILE))))
    return write_preview(rows, path, TILE) if len(rows) > bool(prompt.pictures) else None
