"""TRELLIS.2's whole pipeline on tiny random models, against its stages written out, and the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from fewstep_shapes3d.app.maker import Order
from fewstep_shapes3d.export.record import read_record
from fewstep_trellis.checkpoint import build_model, load_model, save_model
from fewstep_trellis.generate.api import Options
from fewstep_trellis.pipeline.request import Prompt
from fewstep_trellis2.generate.models import choose, models_of
from fewstep_trellis2.generate.page import Trellis2Maker
from fewstep_trellis2.models import MODELS
from fewstep_trellis2.pipeline import grids
from fewstep_trellis2.pipeline.loading import Pipeline
from fewstep_trellis2.pipeline.networks import Prompts
from fewstep_trellis2.pipeline.run import Runner
from fewstep_trellis2.pipeline.spec import KINDS, SHAPE_512, SHAPE_1024, TEXTURE_512, TEXTURE_1024, Kind
from graph_helpers import Rerun
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.api.generation import generate
from fewstep.cli import main
from fewstep.core.graphs import Graphed
from fewstep.core.layout import Packed
from fewstep.errors import FewstepError

COND, C = 32, 4
FLOW = {"model_channels": 32, "cond_channels": COND, "num_blocks": 1, "num_heads": 2, "pe_mode": "rope"}
FLOW |= {"share_mod": True, "qk_rms_norm": True, "qk_rms_norm_cross": True, "out_channels": C}
DECODER = {
    "model_channels": [32, 16, 8, 8, 8],
    "latent_channels": C,
    "num_blocks": [1, 0, 0, 0, 0],
    "block_type": ["SparseConvNeXtBlock3d"] * 5,
    "up_block_type": ["SparseResBlockC2S3d"] * 4,
    "block_args": [{}] * 5,
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sparse_structure_flow_model": ("SparseStructureFlowModel", {**FLOW, "resolution": 4, "in_channels": C}),
    "sparse_structure_decoder": (
        "SparseStructureDecoder",
        {"out_channels": 1, "latent_channels": C, "num_res_blocks": 1, "num_res_blocks_middle": 1, "channels": [16, 8]},
    ),
    SHAPE_512: ("SLatFlowModel", {**FLOW, "resolution": 8, "in_channels": C}),
    SHAPE_1024: ("ElasticSLatFlowModel", {**FLOW, "resolution": 16, "in_channels": C}),
    "shape_slat_decoder": ("FlexiDualGridVaeDecoder", {**DECODER, "resolution": 128}),
    TEXTURE_512: ("SLatFlowModel", {**FLOW, "resolution": 8, "in_channels": 2 * C}),
    TEXTURE_1024: ("SLatFlowModel", {**FLOW, "resolution": 8, "in_channels": 2 * C}),
    "tex_slat_decoder": ("SparseUnetVaeDecoder", {**DECODER, "out_channels": 6, "pred_subdiv": False}),
}
SHAPE_NUMBERS = {"mean": [0.5, -1.0, 0.0, 2.0], "std": [1.5, 0.5, 2.0, 1.0]}
TEXTURE_NUMBERS = {"mean": [1.0, 0.0, -0.5, 0.0], "std": [0.5, 1.0, 2.0, 3.0]}


def sampler(steps: int, strength: float, interval: tuple[float, float], rescale_t: float) -> dict[str, Any]:
    params = {"steps": steps, "guidance_strength": strength, "guidance_rescale": 0.0, "rescale_t": rescale_t}
    return {
        "name": "FlowEulerGuidanceIntervalSampler",
        "args": {"sigma_min": 1e-5},
        "params": {**params, "guidance_interval": list(interval)},
    }


SAMPLERS = {
    "sparse_structure_sampler": sampler(3, 2.5, (0.5, 1.0), 2.0),
    "shape_slat_sampler": sampler(2, 4.0, (0.6, 1.0), 3.0),
    "tex_slat_sampler": sampler(2, 1.0, (0.6, 0.9), 3.0),
}


def described(**changes: Any) -> dict[str, Any]:
    args = {
        "models": {role: f"ckpts/{role}" for role in NETWORKS},
        **SAMPLERS,
        "shape_slat_normalization": SHAPE_NUMBERS,
        "tex_slat_normalization": TEXTURE_NUMBERS,
        "image_cond_model": {"name": "DinoV3FeatureExtractor", "args": {"model_name": "facebook/dinov3-none"}},
        "rembg_model": {"name": "BiRefNet", "args": {"model_name": "briaai/RMBG-2.0"}},
        "low_vram": True,
        "default_pipeline_type": "1024_cascade",
    }
    return {"name": "Trellis2ImageTo3DPipeline", "args": {**args, **changes}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline as files. Nothing in its networks is zero, and few cells of its structures are occupied."""
    path = tmp_path_factory.mktemp("pipeline")
    (path / "ckpts").mkdir()
    for seed, (role, (name, args)) in enumerate(NETWORKS.items()):
        model: Any = build_model(name, args, models=MODELS).requires_grad_(False)
        draw = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.data = parameter + 0.1 * noise if parameter.ndim == 1 else noise / parameter[0].numel() ** 0.5
        if role == "sparse_structure_decoder":
            model.out_layer[-1].bias.fill_(-0.3)
        save_model(model, path / "ckpts" / role)
    (path / "pipeline.json").write_text(json.dumps(described()))
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official ways through the stages, on an eighth of their grids."""
    for name, way in {
        "512": Kind(structure=4, shape=(SHAPE_512,), texture=TEXTURE_512, resolution=64),
        "1024": Kind(structure=8, shape=(SHAPE_1024,), texture=TEXTURE_1024, resolution=128),
        "1024_cascade": Kind(structure=4, shape=(SHAPE_512, SHAPE_1024), texture=TEXTURE_1024, resolution=128),
        "1536_cascade": Kind(structure=4, shape=(SHAPE_512, SHAPE_1024), texture=TEXTURE_1024, resolution=192),
    }.items():
        monkeypatch.setitem(KINDS, name, way)
    monkeypatch.setattr(grids, "DECODED", 64)
    monkeypatch.setattr(grids, "LEAST", 128)
    monkeypatch.setattr(grids, "STEP", 16)


def prompts() -> Prompts:
    draw = torch.Generator().manual_seed(9)
    return {size: Prompt(torch.randn(1, count, COND, generator=draw)) for size, count in ((512, 5), (1024, 7))}


def runner(folder: Path, kind: str, **more: Any) -> Runner:
    chosen = choose(models_of(folder, kind=kind))
    return Runner(chosen.pipeline, chosen.kind, chosen.recipes, **more)


def plain_euler(velocity: Callable[..., Tensor], x: Tensor, tokens: Tensor, spec: dict[str, Any]) -> Tensor:
    """Euler steps from 1 to 0 with g c + (1 - g) u within the interval."""
    params = spec["params"]
    steps, r, g = params["steps"], params["rescale_t"], params["guidance_strength"]
    times = [r * t / (1 + (r - 1) * t) for t in (1 - i / steps for i in range(steps + 1))]
    for t, s in pairwise(times):
        at = torch.tensor([1000 * t])
        v = velocity(x, at, tokens)
        if g != 1 and params["guidance_interval"][0] <= t <= params["guidance_interval"][1]:
            v = g * v + (1 - g) * velocity(x, at, torch.zeros_like(tokens))
        x = x - (t - s) * v
    return x


@torch.no_grad()
def plain_object(folder: Path, kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Cells [T, 3], shape and texture latents, and the mesh, stage by stage."""
    model = {role: load_model(folder / "ckpts" / role, models=MODELS).eval() for role in NETWORKS}
    small, large = (prompts()[size].tokens for size in (512, 1024))
    draw = torch.Generator().manual_seed(seed)
    numbers = {
        name: [torch.tensor(values[key]) for key in ("mean", "std")]
        for name, values in (("shape", SHAPE_NUMBERS), ("texture", TEXTURE_NUMBERS))
    }
    flow = model["sparse_structure_flow_model"]
    z = plain_euler(flow, torch.randn(1, C, 4, 4, 4, generator=draw), small, SAMPLERS["sparse_structure_sampler"])
    side = 8 if kind == "1024" else 4
    occupied = torch.nn.functional.max_pool3d((model["sparse_structure_decoder"](z) > 0).float(), 8 // side)
    cells = occupied[0, 0].nonzero()
    roles = {"512": [SHAPE_512], "1024": [SHAPE_1024]}.get(kind, [SHAPE_512, SHAPE_1024])
    for step, role in enumerate(roles):
        if step:
            fine = model["shape_slat_decoder"].upsample(shape, layout, 4)  # noqa: F821
            cells = torch.tensor(sorted({tuple(c * 8 // 64 for c in cell) for cell in fine.coords.tolist()}))
        layout = Packed.of_lengths([len(cells)], cells.int())
        tokens = large if role == SHAPE_1024 else small
        noise = torch.randn(len(cells), C, generator=draw)
        x = plain_euler(
            lambda x, t, c, role=role, layout=layout: model[role](x, t, c, layout),  # type: ignore[misc]
            noise,
            tokens,
            SAMPLERS["shape_slat_sampler"],
        )
        mean, std = numbers["shape"]
        shape = x * std + mean
    role, tokens = (TEXTURE_512, small) if kind == "512" else (TEXTURE_1024, large)
    noise = torch.randn(len(cells), C, generator=draw)
    x = plain_euler(
        lambda x, t, c: model[role](x, t, c, layout, concat_cond=(shape - mean) / std),
        noise,
        tokens,
        SAMPLERS["tex_slat_sampler"],
    )
    mean, std = numbers["texture"]
    texture = x * std + mean
    made = model["shape_slat_decoder"](shape, layout)
    colours = model["tex_slat_decoder"](texture, layout, made.subdivisions).features * 0.5 + 0.5
    grid = model["shape_slat_decoder"].dual_grid(made.features, made.layout)
    return cells, shape, texture, grid.meshes(64 if kind == "512" else 128, colours.clamp(0, 1))[0]


@pytest.mark.parametrize("kind", ["512", "1024", "1024_cascade"])
def test_the_stages_written_out(folder: Path, kind: str) -> None:
    make = runner(folder, kind)
    (found,) = make(prompts(), seed=3)
    cells, shape, texture, mesh = plain_object(folder, kind, 3)
    assert len(cells) > 3
    assert found.layout.coords is not None
    assert found.layout.coords.tolist() == cells.tolist()
    torch.testing.assert_close(found.shape, shape, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.texture, texture, rtol=1e-4, atol=1e-4)
    decoded = make.decode(found)
    assert torch.equal(decoded.faces, mesh.faces)
    assert decoded.material is not None
    torch.testing.assert_close(decoded.vertices, mesh.vertices, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoded.material, mesh.material, rtol=1e-3, atol=1e-3)


def test_the_finest_cascade_goes_down_to_fewer_tokens(folder: Path) -> None:
    whole = runner(folder, "1536_cascade")(prompts(), seed=3)[0]
    assert whole.resolution == 192
    with pytest.warns(UserWarning, match="the mesh is made at 1[0-9]+ instead of 192"):
        less = runner(folder, "1536_cascade", max_tokens=whole.layout.rows)(prompts(), seed=3)[0]
    assert 128 <= less.resolution < 192
    assert less.layout.rows < whole.layout.rows


def test_low_memory_and_several_samples_change_nothing_for_the_first(folder: Path) -> None:
    (one,) = runner(folder, "512")(prompts(), seed=3)
    first, second = runner(folder, "512", low_memory=True)(prompts(), 2, seed=3)
    torch.testing.assert_close(first.shape, one.shape)
    assert second.number == 1
    assert second.shape.shape != one.shape.shape or not torch.equal(second.shape, one.shape)


def test_graphs_want_every_model_in_place(folder: Path) -> None:
    with pytest.raises(FewstepError, match="--graphs keeps every model on the device"):
        runner(folder, "512", low_memory=True, graphs=True)
    kept = runner(folder, "512", graphs=True)
    assert kept.shelf.stay
    assert kept.replays is None  # on a CPU


def test_the_structure_stage_by_replays_gives_the_same(folder: Path) -> None:
    said: list[str] = []
    plain, replayed = runner(folder, "512"), runner(folder, "512", graphs=True)
    replayed.replays = Graphed(said.append, Rerun)
    for seed in (3, 4, 5):
        (one,), (other,) = plain(prompts(), seed=seed), replayed(prompts(), seed=seed)
        assert torch.equal(one.shape, other.shape)
        assert torch.equal(one.texture, other.texture)
    assert said == []
    assert sum(one is not None for one in replayed.replays.known.values()) == 3  # with condition, without, the decoder


def test_a_student_of_one_stage(folder: Path, tmp_path: Path) -> None:
    """A checkpoint pair in a stage's place: the texture changes, the shape stays."""
    path = student_of(folder, tmp_path / "student")
    chosen = choose(models_of(folder, f"texture={path}", steps="2,2,1", kind="512"))
    assert chosen.recipes["texture"].steps == 1
    assert "carries no sampling contract" in chosen.warnings[0]
    own = Runner(chosen.pipeline, "512", chosen.recipes)(prompts())[0]
    (found,) = Runner(chosen.pipeline, "512", chosen.recipes, chosen.students)(prompts())
    assert torch.equal(found.shape, own.shape)
    # One Euler step over the whole interval: a velocity that is larger by 1 ends lower by 1, before normalisation.
    torch.testing.assert_close(own.texture - found.texture, torch.tensor(TEXTURE_NUMBERS["std"]).expand_as(own.texture))


def student_of(folder: Path, path: Path) -> Path:
    """The texture flow with an output bias that is larger by 1, as a checkpoint pair."""
    for suffix in (".json", ".safetensors"):
        path.with_suffix(suffix).write_bytes((folder / "ckpts" / f"{TEXTURE_512}{suffix}").read_bytes())
    state = load_file(path.with_suffix(".safetensors"))
    save_file(state | {"out_layer.bias": state["out_layer.bias"] + 1}, path.with_suffix(".safetensors"))
    return path


def test_an_exported_pipeline_samples_as_its_student(folder: Path, tmp_path: Path) -> None:
    path = student_of(folder, tmp_path / "student")
    asked = ["--teacher", str(folder), "--type", "512", "--steps", "2,2,1"]
    out = tmp_path / "out"
    assert main(["export", "--backbone", "trellis2", f"texture={path}", *asked, "-o", str(out)]) == 0
    chosen = choose(models_of(out))
    assert (chosen.kind, chosen.recipes["texture"].steps, chosen.recipes["shape"].steps) == ("512", 1, 2)
    again = choose(models_of(folder, f"texture={path}", steps="2,2,1", kind="512"))
    asked_steps = {stage: recipe for stage, recipe in again.recipes.items() if stage == "texture"}
    (one,) = Runner(again.pipeline, "512", chosen.recipes | asked_steps, again.students)(prompts())
    (other,) = Runner(chosen.pipeline, "512", chosen.recipes)(prompts())
    assert torch.equal(one.texture, other.texture)
    assert main(["export", "--backbone", "trellis2", f"texture={path}", *asked, "-o", str(out)]) == 2


@pytest.mark.parametrize("kind", ["512", "1024", "1024_cascade"])
@pytest.mark.parametrize("decode", [True, False])
def test_the_models_that_a_dry_run_looks_at_are_those_that_a_run_loads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, decode: bool
) -> None:
    names = [] if decode else [f"structure={folder}/ckpts/sparse_structure_flow_model"]
    chosen, loaded = choose(models_of(folder, names, kind=kind)), set[str]()
    real = Pipeline.model
    monkeypatch.setattr(Pipeline, "model", lambda self, role: (loaded.add(role), real(self, role))[1])
    made = Runner(chosen.pipeline, kind, chosen.recipes, chosen.students)
    (one,) = made(prompts(), seed=3)
    if decode:
        made.decode(one)
    assert set(chosen.needed(decode=decode)) == loaded


@pytest.mark.parametrize("role", [SHAPE_512, "shape_slat_decoder"])
def test_a_dry_run_names_a_model_that_is_missing_or_cut_short(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, role: str
) -> None:
    monkeypatch.chdir(tmp_path)
    disc()
    shutil.copytree(folder, "damaged")
    weights = Path(f"damaged/ckpts/{role}.safetensors")
    words = ["generate", "--backbone", "trellis2", "disc.png", "--teacher", "damaged", "--dry-run", "--type"]
    assert main([*words, "512"]) == 0
    weights.write_bytes(weights.read_bytes()[:-100])
    capsys.readouterr()
    assert main([*words, "512"]) == 2
    assert f"got '{weights}'; accepted: a complete safetensors file" in capsys.readouterr().err
    weights.unlink()
    assert main([*words, "512"]) == 2
    assert f"model 'ckpts/{role}' is missing; looked for" in capsys.readouterr().err
    if role == SHAPE_512:  # another type does not load it
        assert main([*words, "1024"]) == 0


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("shape-1024=x", "is for stage 'shape-1024', which this pipeline type does not run"),
        ("textures=x", "unknown stage of --student 'textures'.*did you mean 'texture'"),
        ("texture=nothing", "there is no such checkpoint"),
        ("nothing", "accepted: a folder of fewstep distill"),
        ("structure={folder}/ckpts/tex_slat_decoder", "holds a SparseUnetVaeDecoder; accepted: a SparseStructureFlow"),
        (f"structure={{folder}}/ckpts/{SHAPE_512}", "holds a SLatFlowModel; accepted: a SparseStructureFlowModel"),
        (f"texture={{folder}}/ckpts/{SHAPE_512}", "does not fit stage 'texture' .*in_channels 4 instead of 8"),
    ],
)
def test_what_is_no_student(folder: Path, student: str, message: str) -> None:
    with pytest.raises(FewstepError, match=message):
        choose(models_of(folder, student.format(folder=folder), kind="512"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Trellis2TexturingPipeline"}, "unknown name 'Trellis2TexturingPipeline': accepted"),
        ({"name": "TrellisImageTo3DPipeline"}, "unknown name 'TrellisImageTo3DPipeline'.*: --backbone trellis$"),
        ({"models": {"sparse_structure_decoder": "x"}}, "shape_slat_decoder.* missing"),
        ({"default_pipeline_type": "2048"}, "default_pipeline_type"),
        ({"tex_slat_sampler": sampler(0, 1.0, (0, 1), 1.0)}, "tex_slat_sampler.params.steps"),
    ],
)
def test_what_is_no_pipeline(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    described_so = described(**{key: value for key, value in change.items() if key != "name"})
    (tmp_path / "pipeline.json").write_text(json.dumps(described_so | {k: v for k, v in change.items() if k == "name"}))
    with pytest.raises(FewstepError, match=message):
        choose(models_of(tmp_path))


def disc() -> Image.Image:
    """A picture of a disc, written to disc.png."""
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).ellipse((12, 20, 48, 40), fill="red")
    image.save("disc.png")
    return image


def test_the_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": COND, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    DINOv3ViTModel(DINOv3ViTConfig(**sizes, num_register_tokens=4)).save_pretrained("dino")
    image = disc()
    asked = ["generate", "--backbone", "trellis2", "disc.png", "--teacher", str(folder), "--image-encoder", "dino"]
    assert main([*asked, "--type", "512", "-o", "thing.glb", "--steps", "2,1,1", "--dry-run"]) == 0
    assert "would write thing.glb" in capsys.readouterr().out
    assert main([*asked[:-1], "nowhere", "--type", "512", "--dry-run"]) == 2
    assert "--image-encoder: got 'nowhere'; accepted: a folder with config.json" in capsys.readouterr().err
    assert main([*asked, "--type", "512", "-o", "thing.glb", "--steps", "2,1,1", "--formats", "glb,npz"]) == 0
    done = capsys.readouterr()
    assert "structure: the pipeline's own flow, 2 steps, euler, guidance 2.5" in done.out
    assert "texture decoder" in done.out
    (mesh,) = trimesh.load("thing.glb", process=False).geometry.values()
    assert len(mesh.faces) > 0
    assert "_ROUGHNESS" in mesh.vertex_attributes
    record = read_record(Path("thing.glb"))
    assert (record["type"], record["steps"], record["stages"]) == ("512", [2, 1, 1], ["structure", "shape", "texture"])
    arrays = np.load("thing.npz")
    assert arrays["latents"].shape == (len(arrays["coords"]), 2 * C)
    options = {"teacher": folder, "encoder": "dino", "type": "512", "steps": (2, 1, 1)}
    (same,) = generate(tmp_path, backbone="trellis2", **options)  # a folder
    assert (same.record["steps"], len(same.mesh.faces)) == ([2, 1, 1], len(mesh.faces))
    page = Trellis2Maker(
        str(folder), [f"texture={student_of(folder, tmp_path / 'student')}"], Options(encoder="dino"), "512"
    )
    assert [choice.steps for choice in page.choices] == [(3, 2, 2), (3, 2, 2)]  # a file without contract: as the flow
    order = Order(image, "disc", 1, (2, 1, 1), 42, "remove")
    page.check(order)
    assert page(order, list[str]().append).counts["faces"] == len(mesh.faces)
    assert main([*asked, "-o", "thing.ply"]) == 2
    assert "needs gaussians, which" in capsys.readouterr().err
    assert main([*asked[:3], "a wooden chair", *asked[4:]]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "TRELLIS.2 takes no texts; TRELLIS does: --backbone trellis --teacher microsoft/TRELLIS-text-large" in said
    with pytest.raises(FewstepError, match=r"TRELLIS\.2 takes no texts"):
        generate("a wooden chair", backbone="trellis2", **options)
    assert main([*asked, "--low-memory", "--graphs"]) == 2
    assert "--graphs keeps every model on the device, and --low-memory one at a time" in capsys.readouterr().err
    assert main([*asked, "--type", "2048"]) == 2
    assert "unknown --type '2048'" in capsys.readouterr().err
