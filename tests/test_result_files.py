"""What the files of a result say of how it was made, and results without floating parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fewstep_shapes3d.export import read_record, write_glb
from fewstep_shapes3d.parts import largest_mesh, largest_voxels
from fewstep_shapes3d.representations import Mesh
from pipeline_helpers import Go, picture

import fewstep
from fewstep.core.layout import Packed
from fewstep.errors import FewstepError


def test_files_carry_how_they_were_made(go: Go, tiny_pipeline: Path) -> None:
    picture(Path("disc.png"))
    done = go(
        "disc.png", "-o", "out/d.glb", "--formats", "glb,ply,npz,rf", "--seed", "7", "--guidance", "2,1", "-n", "2"
    )
    assert done.code == 0, done.err
    for path in (path for path in Path("out").iterdir() if path.suffix != ".png"):
        assert read_record(path) == {
            "version": fewstep.__version__,
            "seed": 7,
            "sample": int(path.name[2]) - 1,
            "inputs": ["disc.png"],
            "model": str(tiny_pipeline),
            "students": ["", ""],
            "steps": [3, 2],
            "guidance": [2.0, 1.0],
            "samplers": ["euler", "euler"],
            "options": [],
        }
    assert np.load("out/d-1.npz")["seed"] == 7
    header = Path("out/d-1.ply").read_bytes().partition(b"end_header")[0].decode()
    assert json.loads(header.partition("comment fewstep ")[2].partition("\n")[0])["seed"] == 7


def test_files_that_say_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", seed=np.array(3))
    assert read_record(tmp_path / "other.npz") == {}
    (tmp_path / "torn.glb").write_bytes(b"glTF")
    for name in ("torn.glb", "missing.npz", "other.obj"):
        with pytest.raises(FewstepError, match=name):
            read_record(tmp_path / name)


def two_boxes() -> Mesh:
    """A box, and a smaller one with more faces beside it that comes first."""
    small = trimesh.creation.box((0.1,) * 3)
    large = trimesh.creation.box((0.4,) * 3).subdivide()
    large.apply_translation((0.3, 0, 0))
    both = trimesh.util.concatenate([small, large])
    colours = torch.rand(len(both.vertices), 6)
    return Mesh(torch.tensor(both.vertices).float(), torch.tensor(both.faces), colours)


def test_the_largest_part_of_a_mesh(tmp_path: Path) -> None:
    both = two_boxes()
    found = largest_mesh(both)
    assert (len(found.vertices), len(found.faces)) == (26, 48)
    assert found.vertices[:, 0].min() == pytest.approx(0.1)
    assert found.vertex_attrs is not None
    assert both.vertex_attrs is not None
    assert torch.equal(found.vertex_attrs, both.vertex_attrs[8:])
    (loaded,) = trimesh.load(write_glb(found, tmp_path / "a.glb")).geometry.values()
    assert loaded.is_watertight
    assert len(largest_mesh(Mesh(torch.zeros(0, 3), torch.zeros(0, 3).long())).faces) == 0


def test_the_largest_part_of_each_structure() -> None:
    coords = torch.tensor([[0, 0, 0], [5, 5, 5], [6, 6, 6], [3, 3, 3], [3, 3, 5]], dtype=torch.int32)
    latents, layout = largest_voxels(torch.arange(5.0)[:, None], Packed.of_lengths([3, 2], coords))
    assert latents[:, 0].tolist() == [1, 2, 3]
    assert layout.lengths.tolist() == [2, 1]
    assert layout.coords is not None
    assert layout.coords.tolist() == [[5, 5, 5], [6, 6, 6], [3, 3, 3]]


def test_largest_part_on_the_command_line(go: Go) -> None:
    picture(Path("disc.png"))
    for name, more in (("all", []), ("one", ["--largest-part"])):
        assert go("disc.png", "-o", f"{name}.glb", "--formats", "glb,npz,ply", *more).code == 0
    parts = {
        name: len(next(iter(trimesh.load(f"{name}.glb", process=False).geometry.values())).split(only_watertight=False))
        for name in ("all", "one")
    }
    assert parts["one"] == 1 < parts["all"]
    assert len(np.load("one.npz")["coords"]) <= len(np.load("all.npz")["coords"])
    assert read_record("one.glb")["options"] == ["largest_part"]
