"""The texture of a given mesh: its dual grid, and TRELLIS.2's texturing pipeline on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from fewstep_shapes3d.export.record import read_record
from fewstep_trellis.checkpoint import build_model, load_model, save_model
from fewstep_trellis2.mesh.voxelise import dual_grid_of
from fewstep_trellis2.models import MODELS
from fewstep_trellis2.pipeline.spec import KINDS, SHAPE_512, TEXTURE_512, TEXTURE_1024, Kind
from fewstep_trellis2.pipeline.texture import order_of
from fewstep_trellis2.vae.subdivision import guide_of
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from test_trellis2_pipeline import COND, DECODER, FLOW, SAMPLERS, SHAPE_NUMBERS, TEXTURE_NUMBERS, C

from fewstep.cli import main
from fewstep.core.layout import Packed

ENCODER = {
    "model_channels": [8, 8, 8, 16, 32],
    "latent_channels": C,
    "num_blocks": [0, 0, 0, 0, 1],
    "block_type": ["SparseConvNeXtBlock3d"] * 5,
    "down_block_type": ["SparseResBlockS2C3d"] * 4,
    "block_args": [{}] * 5,
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "shape_slat_encoder": ("FlexiDualGridVaeEncoder", ENCODER),
    TEXTURE_512: ("SLatFlowModel", {**FLOW, "resolution": 8, "in_channels": 2 * C}),
    TEXTURE_1024: ("SLatFlowModel", {**FLOW, "resolution": 8, "in_channels": 2 * C}),
    "tex_slat_decoder": ("SparseUnetVaeDecoder", {**DECODER, "out_channels": 6, "pred_subdiv": False}),
}


TURN = trimesh.transformations.rotation_matrix(0.4, [1, 2, 3])


def surface() -> trimesh.Trimesh:
    """A box, turned, of edges that no plane of a grid is parallel to."""
    return trimesh.creation.box((0.8, 0.5, 0.3)).apply_transform(TURN)


def tensors(mesh: trimesh.Trimesh) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.array(mesh.vertices)), torch.from_numpy(np.array(mesh.faces))


class TestDualGrid:
    def test_a_plane_is_kept_exactly(self) -> None:
        """A tilted sheet through the whole grid: every crossed edge, by its own formula, and vertices on the plane."""
        slope, size = np.array([0.3, -0.2]), 16
        corners = np.array([[x, y] for x in (-0.5, 0.5) for y in (-0.5, 0.5)])
        sheet = np.concatenate([corners, (corners @ slope + 0.013)[:, None]], 1)
        grid = dual_grid_of(torch.from_numpy(sheet), torch.tensor([[0, 1, 2], [2, 1, 3]]), size)
        assert grid.layout.coords is not None
        place = (grid.layout.coords + grid.vertex).double() / size - 0.5
        inner = ((grid.layout.coords > 0) & (grid.layout.coords < size - 1)).all(1)  # beside open edges they may leave
        height = place[:, :2] @ torch.from_numpy(slope) + 0.013
        torch.testing.assert_close(place[inner, 2], height[inner], atol=1e-5, rtol=0)
        crossed = set()
        for x in range(1, size):
            for y in range(1, size):
                height = (np.array([x, y]) / size - 0.5) @ slope + 0.013
                crossed.add((x - 1, y - 1, int((height + 0.5) * size)))
        rows = grid.intersected[:, 2].nonzero()[:, 0]
        assert {tuple(cell) for cell in grid.layout.coords[rows].tolist()} == crossed

    def test_a_box_comes_back_with_its_edges(self) -> None:
        half, turned = np.array([0.4, 0.25, 0.15]), surface()
        vertices, faces = tensors(turned)
        (mesh,) = dual_grid_of(vertices, faces, 48).meshes(48)
        found = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
        assert found.area == pytest.approx(turned.area, rel=2e-3)
        beyond = np.abs(found.vertices @ TURN[:3, :3]) - half  # in the box's own axes
        outside = np.linalg.norm(beyond.clip(min=0), axis=1)
        away = np.abs(np.where(outside > 0, outside, beyond.max(1)))
        assert np.quantile(away, 0.99) < 0.02 / 48
        assert away.max() < 0.3 / 48  # a vertex stays in its voxel, where a neighbour has the edge
        corners = np.linalg.norm(found.vertices[:, None] - turned.vertices, axis=2).min(0)
        assert corners.max() < 0.3 / 48

    @pytest.mark.parametrize("name", ["box", "open"])
    def test_it_is_the_reference_s(self, name: str) -> None:
        """A closed mesh, and one with holes. The reference solves in float32, in units of the whole grid."""
        file = load_file(Path(__file__).parent / "golden" / "data" / "trellis2" / "dual_grid.safetensors")
        wanted = {key.partition(".")[2]: value for key, value in file.items() if key.startswith(name)}
        found = dual_grid_of(wanted["vertices"], wanted["faces"].long(), 16)
        assert found.layout.coords is not None
        assert torch.equal(found.layout.coords, wanted["coords"].int())
        assert torch.equal(found.intersected, wanted["intersected"])
        torch.testing.assert_close(found.vertex, wanted["vertex"], atol=2e-3, rtol=0)

    def test_what_crosses_nothing(self) -> None:
        with pytest.raises(Exception, match="crosses no edge of a grid of 4 cells"):
            dual_grid_of(*tensors(trimesh.creation.icosphere(1, 0.01).apply_translation([0.1, 0.1, 0.1])), 4)


def test_the_guide_leads_to_the_same_voxels() -> None:
    grid = dual_grid_of(*tensors(surface()), 64)
    assert grid.layout.coords is not None
    coarse = (grid.layout.coords // 16).unique(dim=0)
    layout = Packed.of_lengths([len(coarse)], coarse[torch.randperm(len(coarse))])
    guide = guide_of(layout, grid.layout, 4)
    last = guide[-1].layout
    assert last.coords is not None
    assert torch.equal(last.coords[order_of(grid.layout, last)], grid.layout.coords)
    assert [len(one.logits) for one in guide] == [
        len((grid.layout.coords // factor).unique(dim=0)) for factor in (16, 8, 4, 2)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, role in (("512", TEXTURE_512), ("1024", TEXTURE_1024)):
        monkeypatch.setitem(KINDS, name, Kind(structure=4, shape=(SHAPE_512,), texture=role, resolution=int(name) // 8))
    (tmp_path / "ckpts").mkdir()
    for seed, (role, (name, args)) in enumerate(NETWORKS.items()):
        model: Any = build_model(name, args, models=MODELS).requires_grad_(False)
        draw = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.2 * torch.randn(parameter.shape, generator=draw))
        save_model(model, tmp_path / "ckpts" / role)
    args = {
        "models": {role: f"ckpts/{role}" for role in NETWORKS},
        "tex_slat_sampler": SAMPLERS["tex_slat_sampler"],
        "shape_slat_normalization": SHAPE_NUMBERS,
        "tex_slat_normalization": TEXTURE_NUMBERS,
        "image_cond_model": {"name": "DinoV3FeatureExtractor", "args": {"model_name": "facebook/dinov3-none"}},
    }
    described = {"name": "Trellis2TexturingPipeline", "args": args}
    (tmp_path / "texturing_pipeline.json").write_text(json.dumps(described))
    return tmp_path


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The mesh keeps its faces; its colours are those of the stages written out."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    monkeypatch.chdir(folder)
    sizes = {"hidden_size": COND, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    DINOv3ViTModel(DINOv3ViTConfig(**sizes, num_register_tokens=4)).save_pretrained("dino")
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).ellipse((12, 20, 48, 40), fill="red")
    image.save("disc.png")
    surface().subdivide().export("box.glb")
    asked = ["generate", "--backbone", "trellis2", "disc.png", "--teacher", str(folder), "--image-encoder", "dino"]
    asked += ["--mesh", "box.glb"]
    weights = Path("ckpts/shape_slat_encoder.safetensors")  # loaded with a mesh alone
    weights.rename("aside")
    assert main([*asked, "--type", "512", "--dry-run"]) == 2
    assert "model 'ckpts/shape_slat_encoder' is missing" in capsys.readouterr().err
    Path("aside").rename(weights)
    assert main([*asked, "-o", "thing.glb", "--type", "512", "--steps", "1", "--formats", "glb,npz"]) == 0
    assert "texture: the pipeline's own flow, 1 step" in capsys.readouterr().out
    (mesh,) = trimesh.load("thing.glb", process=False).geometry.values()
    given = surface().subdivide()
    assert len(mesh.faces) == len(given.faces)
    assert mesh.extents.max() == pytest.approx(1, abs=1e-4)
    assert read_record(Path("thing.glb"))["stages"] == ["texture"]
    arrays = np.load("thing.npz")
    encoder: Any = load_model(folder / "ckpts" / "shape_slat_encoder", models=MODELS).eval()
    places = given.vertices - (given.vertices.min(0) + given.vertices.max(0)) / 2
    places = torch.from_numpy(places * 0.99999 / given.extents.max())[:, [0, 2, 1]] * torch.tensor([1, -1, 1])
    grid = dual_grid_of(places, torch.from_numpy(np.array(given.faces)), 64)
    with torch.no_grad():
        latents, _, cells = encoder.encode(grid.vertex, grid.intersected, grid.layout)
    assert arrays["coords"].tolist() == cells.coords.tolist()
    np.testing.assert_allclose(arrays["latents"][:, :C], latents.numpy(), rtol=1e-3, atol=1e-3)
    assert main([*asked, "-o", "fine.glb", "--texture", "64", "--steps", "1"]) == 0  # 1024, as no --type is asked for
    fine = read_record(Path("fine.glb"))
    assert (fine["type"], fine["resolution"]) == ("1024", 128)
    (textured,) = trimesh.load("fine.glb", process=False).geometry.values()
    assert textured.visual.material.baseColorTexture.size == (64, 64)
    assert main([*asked, "--type", "1024_cascade"]) == 2
    assert "unknown --type with --mesh '1024_cascade': accepted are 1024, 512" in capsys.readouterr().err
    assert main([*asked[:-1], "disc.png"]) == 2
    assert "--mesh: got 'disc.png'; accepted: a file in .glb" in capsys.readouterr().err
