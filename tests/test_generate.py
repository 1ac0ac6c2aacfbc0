"""``fewstep generate`` and ``fewstep export`` from the command line, on a tiny random pipeline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from conftest import Cli, contents
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.result import Result
from fewstep_trellis.pipeline import run
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.shipped import student_for
from PIL import Image
from pipeline_helpers import COND, Done, Go, describe, picture, refused, write_pipeline
from plyfile import PlyData
from test_pipeline_students import distilled

from fewstep.api.generation import generate
from fewstep.cli import main
from fewstep.core.contract import Contract
from fewstep.errors import FewstepError


def student(folder: Path, stage: str = "slat", **contract: Any) -> Path:
    return distilled(folder, stage, Contract(**{"sampler": "euler", "steps": (1, 2), **contract}))


def latents(path: Path) -> Any:
    return np.load(path)["latents"]


def test_a_picture_becomes_files_that_other_programs_open(go: Go) -> None:
    picture(Path("disc.png"))
    done = go("disc.png", "-o", "out/thing.glb", "--formats", "glb,ply,npz,rf")
    assert done.code == 0, done.err
    arrays = np.load("out/thing.npz")
    assert arrays["coords"].shape == (len(arrays["latents"]), 3)
    assert 0 <= arrays["coords"].min() <= arrays["coords"].max() < arrays["resolution"] == 8
    mesh: Any = next(iter(trimesh.load("out/thing.glb", process=False).geometry.values()))
    assert len(mesh.faces) == len(arrays["faces"]) > 0
    assert len(mesh.visual.vertex_attributes["color"]) == len(arrays["vertices"]) > 0
    assert len(PlyData.read("out/thing.ply")["vertex"]) == 2 * len(arrays["coords"])
    assert np.load("out/thing.rf.npz")["trivec"].shape == (len(arrays["coords"]), 2, 3, 4)
    with Image.open("out/thing.preview.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 5
    assert sorted(path.suffix for path in Path("out").iterdir()) == [".glb", ".npz", ".npz", ".ply", ".png"]


def test_what_is_printed(go: Go, tiny_pipeline: Path) -> None:
    picture(Path("disc.png"))
    out = go("disc.png", "-o", "disc.ply", "--no-preview").out
    assert f"pipeline: {tiny_pipeline}" in out
    assert "structure: the pipeline's own flow, 3 steps, euler, guidance 2.5 for t in [0.5, 0.95], rescale_t 2" in out
    for stage in ("loading models", "structure flow", "latent flow", "Gaussian decoder", "writing", "total"):
        assert stage in out
    assert "mesh decoder" not in out
    assert "wrote disc.ply" in out
    assert "peak memory (every model kept): process" in out
    assert [path.name for path in sorted(Path().iterdir())] == ["disc.ply", "disc.png"]


def test_samples_are_numbered_and_the_seed_decides(go: Go) -> None:
    picture(Path("disc.png"))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        go("disc.png", "-o", name, "--formats", "npz", "--samples", "2", "--seed", seed, "--no-preview")
    assert sorted(path.name for path in Path("a").iterdir()) == ["disc-1.npz", "disc-2.npz"]
    assert np.array_equal(latents(Path("a/disc-2.npz")), latents(Path("b/disc-2.npz")))
    assert not np.array_equal(latents(Path("a/disc-2.npz"))[:5], latents(Path("c/disc-2.npz"))[:5])


def test_json_lines_alone_are_on_standard_output(go: Go) -> None:
    Path("in").mkdir()
    picture(Path("in/a.png"))
    Path("in/c.png").write_text("no picture")
    done = go("in", "-o", "out", "--formats", "glb,ply", "-n", "2", "--seed", "7", "--json", "--no-preview")
    assert done.code == 1
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["path"] for line in lines] == ["out/a-1.glb", "out/a-2.glb"]
    for line in lines:
        assert line["files"] == [line["path"], line["path"].replace(".glb", ".ply")]
        mesh: Any = next(iter(trimesh.load(line["path"], process=False).geometry.values()))
        assert line["faces"] == len(mesh.faces) > 0
        assert line["gaussians"] == 2 * line["voxels"] == len(PlyData.read(line["files"][1])["vertex"])
        assert (line["steps"], line["seed"], line["students"]) == ([3, 2], 7, ["", ""])
        assert 0 < line["seconds"]["structure flow"] < 60
    assert "failed: in/c.png" in done.err
    assert "structure flow" in done.err  # what is else on standard output
    dry = go("in/a.png", "-o", "dry", "--json", "--dry-run")
    assert (dry.code, dry.out) == (0, "")


def test_low_memory_writes_the_same_bytes(go: Go) -> None:
    picture(Path("disc.png"))
    go("disc.png", "-o", "a", "--formats", "glb,ply", "--no-preview")
    done = go("disc.png", "-o", "b", "--formats", "glb,ply", "--no-preview", "--low-memory")
    assert contents(Path("a")) == contents(Path("b"))
    assert "one model at a time" in done.out


def test_a_folder_gives_one_result_each_and_what_is_broken_is_reported(go: Go) -> None:
    Path("in").mkdir()
    for name, colour in (("a", "red"), ("d", "blue")):
        picture(Path(f"in/{name}.png"), colour)
    Path("in/b.jpg").write_bytes(b"not a picture")
    Image.new("RGBA", (32, 32)).save("in/c.png")
    Path("in/notes.txt").write_text("no picture, not asked")
    done = go("in", "-o", "out", "--formats", "npz", "--no-preview")
    assert done.code == 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.npz", "d.npz"]
    assert "failed: in/b.jpg: image: got 'in/b.jpg'" in done.err
    assert "failed: in/c.png: " in done.err
    assert "2 made, 2 failed" in done.err
    assert not np.array_equal(latents(Path("out/a.npz"))[:5], latents(Path("out/d.npz"))[:5])


def test_one_broken_picture_is_bad_input(go: Go) -> None:
    Image.new("RGBA", (32, 32)).save("clear.png")
    assert "no object" in refused(go("clear.png")) or "transparent" in refused(go("clear.png"))
    assert not Path("generated").exists()


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_several_pictures_of_one_object(go: Go, mode: str) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        picture(Path(f"{name}.png"), colour)
    go("a.png", "b.png", "-o", "both.npz", "--multi-image", mode, "--no-preview")
    go("a.png", "-o", "one.npz", "--no-preview")
    assert not np.array_equal(latents(Path("both.npz"))[:5], latents(Path("one.npz"))[:5])


def test_nothing_is_overwritten_without_force(go: Go) -> None:
    picture(Path("disc.png"))
    Path("disc.npz").write_text("mine")
    message = refused(go("disc.png", "-o", "disc.npz", "--no-preview"))
    assert "disc.npz exists; accepted: a new name, or --force" in message
    assert Path("disc.npz").read_text() == "mine"
    assert go("disc.png", "-o", "disc.npz", "--no-preview", "--force").code == 0
    assert len(latents(Path("disc.npz")))


def test_a_picture_is_never_written_over(go: Go) -> None:
    before = picture(Path("disc.preview.png")).read_bytes()
    assert "is an input" in refused(go("disc.preview.png", "-o", "disc.glb", "--force"))
    assert Path("disc.preview.png").read_bytes() == before


def test_a_dry_run_reads_no_weights_and_writes_nothing(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "model", None)
    picture(Path("disc.png"))
    out = go("disc.png", "--steps", "5,4", "--guidance", "1,2", "--dry-run").out
    assert "structure: the pipeline's own flow, 5 steps, euler, no guidance" in out
    assert "latents: the pipeline's own flow, 4 steps, euler, guidance 2" in out
    assert "would write generated/disc.glb, generated/disc.preview.png" in out
    assert not Path("generated").exists()


@pytest.mark.parametrize("role", ["slat_flow_model", "slat_decoder_mesh", "sparse_structure_decoder"])
def test_a_dry_run_names_a_model_that_is_missing_or_cut_short(
    go: Go, tiny_pipeline: Path, tmp_path: Path, role: str
) -> None:
    picture(Path("disc.png"))
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_pipeline, folder)
    weights = folder / f"{Pipeline.open(folder).spec.models[role]}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = refused(go("disc.png", "--dry-run", teacher=folder))
    assert f"got '{weights}'; accepted: a complete safetensors file" in said
    assert said == refused(go("disc.png", teacher=folder))
    weights.unlink()
    said = refused(go("disc.png", "--dry-run", teacher=folder))
    assert "is missing; looked for" in said
    assert said == refused(go("disc.png", teacher=folder))


def test_a_dry_run_looks_for_the_image_encoder(go: Go, tiny_encoder: Path, tmp_path: Path) -> None:
    picture(Path("disc.png"))
    damaged, other = tmp_path / "damaged", tmp_path / "other"
    for folder in (damaged, other):
        shutil.copytree(tiny_encoder, folder)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (other / "config.json").write_text('{"model_type": "clip"}')
    for name, part in {
        "nowhere.pth": "--image-encoder: unknown image encoder 'nowhere.pth': accepted are dinov2_vitb14_reg",
        "dinov2_vitl14_rge": "did you mean 'dinov2_vitl14_reg'?",
        "disc.png": "--image-encoder: checkpoint: got 'disc.png'; accepted: a complete safetensors file",
        ".": "--image-encoder: got '.'; accepted: a folder with config.json",
        str(other): "accepted: a model of type dinov2_with_registers; this one is 'clip'",
        str(damaged): "accepted: config.json and complete safetensors (checkpoint: got",
    }.items():
        assert part in refused(go("disc.png", "--dry-run", encoder=name))
    weights.unlink()
    assert "there is none here" in refused(go("disc.png", "--dry-run", encoder=damaged))
    for name in ("owner/name", "dinov2_vitl14_reg"):  # what may be on the hub is not fetched
        assert go("disc.png", "--dry-run", encoder=name).code == 0


def test_a_student_and_its_contract(go: Go, tmp_path: Path) -> None:
    picture(Path("disc.png"))
    folder = student(tmp_path / "slat")
    obeyed = go("disc.png", "-o", "a.npz", "--student", folder, "--no-preview")
    assert f"latents: student mdt-vd ({folder}), 1 step, euler, no guidance" in obeyed.out
    assert obeyed.err == ""
    told = go("disc.png", "-o", "b.npz", "--student", folder, "--steps", "3", "--guidance", "2", "--no-preview")
    assert "made for 1, 2 steps, got 3" in told.err
    assert "made for guidance 1, got 2" in told.err
    assert not np.allclose(latents(Path("a.npz"))[:5], latents(Path("b.npz"))[:5])


def test_released_weights_say_what_is_assumed(go: Go, tmp_path: Path) -> None:
    from pipeline_helpers import network

    picture(Path("disc.png"))
    path = tmp_path / "released.pt"
    torch.save({f"module.{key}": value for key, value in network("slat_flow").state_dict().items()}, path)
    done = go("disc.png", "-o", "a.npz", "--student", path, "--no-preview")
    assert f"warning: {path}: carries no sampling contract" in done.err
    assert f"warning: {path}: removed the prefix 'module.'" in done.err
    assert "weights without arguments" in done.out
    assert done.code == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.png"], "there is nothing of this name"),
        (["disc.png", "--formats", "gbl"], "unknown format 'gbl'"),
        (["disc.png", "-o", "x.obj"], "a folder, or a file ending in .glb, .ply or .npz"),
        (["disc.png", "-o", "x.glb", "--formats", "ply"], "accepted: a suffix of these"),
        (["disc.png", "other.png", "-o", "x.glb"], "for 2 objects; accepted: a folder"),
        (["disc.png", "in/disc.png"], "two pictures are called 'disc'"),
        (["empty"], "a folder with pictures in it"),
        (["disc.png", "--text", "a chair"], "this pipeline is for pictures"),
        (["disc.png", "--multi-image", "mean"], "unknown --multi-image 'mean'"),
        (["disc.png", "--steps", "1,2,3"], "a number from 1 on, or two"),
        (["disc.png", "--steps", "0"], "a number from 1 on"),
        (["disc.png", "--guidance", "nan"], "a number from 0"),
        (["disc.png", "--sampler", "eular"], "did you mean 'euler'"),
        (["disc.png", "--student", "nothing"], "accepted: a folder of fewstep distill"),
        (["disc.png", "--student", "none", "--student", "x"], "or 'none' alone"),
        (["disc.png", "--device", "tpu9"], "--device: got 'tpu9'"),
        (["disc.png", "--background", "blur"], "unknown --background 'blur'"),
        (["disc.png", "-o", "disc.png/x.glb"], "is not a folder"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(go: Go, arguments: list[str], text: str) -> None:
    for folder in ("in", "empty"):
        Path(folder).mkdir()
    for name in ("disc.png", "other.png", "in/disc.png"):
        picture(Path(name))
    before = contents(Path())
    assert text in refused(go(*arguments))
    assert contents(Path()) == before


def test_an_encoder_of_another_width_is_refused(tmp_path: Path, go: Go) -> None:
    from fewstep_trellis.checkpoint import build_model, save_model
    from pipeline_helpers import MODELS

    folder = write_pipeline(tmp_path / "wide")
    for name in ("ss_flow", "slat_flow"):
        cls, args = MODELS[name]
        save_model(build_model(cls, {**args, "cond_channels": 16}), folder / "ckpts" / name)
    picture(Path("disc.png"))
    assert f"has {COND} channels; the flows take 16" in refused(go("disc.png", teacher=folder))


class Words:
    """A text encoder: tokens that depend on the letters."""

    name, channels = "words", COND

    def encode(self, texts: list[str]) -> torch.Tensor:
        seeds = [sum(text.encode()) for text in texts]
        return torch.stack([torch.randn(7, COND, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def negative(self, batch: int) -> torch.Tensor:
        return self.encode([""]).expand(batch, -1, -1)

    def to(self, device: Any) -> Words:
        return self


def test_texts(tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(run, "text_conditioner", lambda name: asked.append(name) or Words())
    folder = describe(write_pipeline(tmp_path / "text"), image_cond_model=None, text_cond_model="some/clip")
    texts = ("a red chair", "--text", "A stool!", "--text", "a bed [/bold]", "--text", "a wooden chair " * 30)
    done = go(*texts, "-o", "out", "--formats", "npz", "--no-preview", teacher=folder)
    assert done.code == 0, done.err
    long = "a-wooden-chair-a-wooden-chair-a-wooden-chair-a-w.npz"
    names = ["a-bed-bold.npz", "a-red-chair.npz", "a-stool.npz", long]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    assert "a bed [/bold]: " in done.out
    assert not np.array_equal(latents(Path("out/a-stool.npz"))[:5], latents(Path("out/a-red-chair.npz"))[:5])
    picture(Path("disc.png"))
    assert "this pipeline is for texts" in refused(go("disc.png", teacher=folder))
    assert "accepted: a text" in refused(go("--dry-run", teacher=folder))


def test_the_encoder_of_the_file_is_asked_for(
    tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = describe(write_pipeline(tmp_path / "p"), image_cond_model="dinov2_vits14_regg")
    picture(Path("disc.png"))
    code = main(["generate", "disc.png", "--teacher", str(folder)])
    message = refused(Done(code, *capsys.readouterr()))
    assert "unknown image encoder 'dinov2_vits14_regg'" in message
    assert "did you mean 'dinov2_vits14_reg'" in message


def test_an_exported_folder_makes_what_the_students_made(go: Go, tmp_path: Path) -> None:
    picture(Path("disc.png"))
    pair = tmp_path / "pair"
    for stage in ("ss", "slat"):
        student(pair / stage, stage)
    made = go("disc.png", "-o", "a.npz", "--student", pair, "--steps", "1,2", "--no-preview")
    assert (made.code, made.err) == (0, "")
    done = go(pair, "-o", "exported", "--steps", "1,2", command="export")
    assert (done.code, done.err) == (0, "")
    assert "wrote exported" in done.out
    assert go("disc.png", "-o", "b.npz", "--no-preview", teacher="exported").code == 0
    assert np.array_equal(latents(Path("a.npz")), latents(Path("b.npz")))
    assert "nothing is overwritten" in refused(go(pair, "-o", "exported", command="export"))


def test_the_shipped_student_for_a_number_of_steps() -> None:
    found = student_for("ss", 1)
    assert found is not None
    assert found.name == "mdt-vd"
    assert student_for("ss", 25) is None


PAGE = Path(__file__).parent.parent / "docs" / "trellis.md"


def test_the_pages_python_runs(
    tmp_path: Path, tiny_pipeline: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "p")
    describe(tmp_path / "p", image_cond_model=str(tiny_encoder))
    monkeypatch.chdir(tmp_path)
    picture(Path("chair.png"))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code.replace("microsoft/TRELLIS-image-large", str(tmp_path / "p")), {})
    assert {path.name for path in tmp_path.glob("*.glb")} == {"chair-0.glb", "chair-1.glb"}


def test_the_page_knows_the_options_and_no_others(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["generate", "--help"]) == 0
    known = set(re.findall(r"--[a-z][\w-]+", capsys.readouterr().out))
    named = set(re.findall(r"`(--[a-z][\w-]+)", PAGE.read_text(encoding="utf-8")))
    assert named <= known
    assert {"--student", "--low-memory", "--multi-image", "--formats", "--guidance", "--image-encoder"} <= named


def test_the_shipped_model_makes_a_bed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    objects = PreparedSet.load(SWEETHOME3D)
    bed = next(int(row) for row in objects.test if objects.table[int(row)]["name"] == "Bed")
    Image.fromarray(objects.picture(bed)).save("bed.png")
    students = [stage for stage in ("ss", "slat") if student_for(stage, 1)]
    assert "ss" in students
    assert main(["generate", "bed.png", "-o", "bed.glb", "--steps", "1", "--no-preview"]) == 0
    out = capsys.readouterr().out
    assert "shipped nano model" in out
    assert out.count("1 step,") == 2
    assert out.count(": student ") == len(students)
    mesh: Any = next(iter(trimesh.load("bed.glb").geometry.values()))
    assert len(mesh.faces) > 1000
    height, longest = mesh.extents[1], max(mesh.extents)  # y is up
    assert height < 0.8 * longest


def python(tiny_pipeline: Path, tiny_encoder: Path) -> Callable[..., Any]:
    """``fewstep.generate`` on the tiny pipeline."""
    return partial(generate, teacher=tiny_pipeline, encoder=tiny_encoder, backbone="trellis")


def test_python_makes_what_the_command_line_makes(go: Go, tiny_pipeline: Path, tiny_encoder: Path) -> None:
    picture(Path("disc.png"))
    go("disc.png", "-o", "cli", "--formats", "glb,ply,npz,rf", "--seed", "5")
    result = python(tiny_pipeline, tiny_encoder)("disc.png", seed=5)
    for suffix in (".glb", ".ply", ".npz", ".rf.npz"):
        assert result.save(f"python/disc{suffix}") == Path(f"python/disc{suffix}")
    result.save("python/disc.preview.png")
    assert contents(Path("python")) == contents(Path("cli"))


def test_a_result_decodes_on_use_and_shows_itself(
    go: Go, tiny_pipeline: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(picture(Path("disc.png"))) as opened:
        result = python(tiny_pipeline, tiny_encoder)(opened.copy(), low_memory=True, device="cpu")
    assert isinstance(result, Result)
    assert repr(result).endswith("decoded: nothing yet)")
    assert "latent flow" in result.seconds
    assert "Gaussian decoder" not in result.seconds
    assert result.coords.shape == (len(result.latents), 3)
    assert result.occupancy.sum() == len(result.coords)
    assert len(result.gaussians) == 2 * len(result.coords)
    assert result.gaussians is result.gaussians
    assert not result.gaussians.xyz.requires_grad
    assert "Gaussian decoder" in result.seconds
    assert result._repr_png_().startswith(b"\x89PNG")
    assert "mesh decoder" not in result.seconds  # the picture is of what was decoded
    assert result.mesh.success
    with pytest.raises(FewstepError, match=r"got 'disc.obj'; accepted: a name ending in .glb, .ply"):
        result.save("disc.obj")


def test_one_input_gives_one_result_and_several_a_list(go: Go, tiny_pipeline: Path, tiny_encoder: Path) -> None:
    make = python(tiny_pipeline, tiny_encoder)
    Path("in").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        picture(Path(f"in/{name}.png"), colour)
    first, second = make(["in/a.png", Path("in/b.png")])
    assert [first.name, second.name] == ["in/a.png", "in/b.png"]
    assert not torch.equal(first.latents[:5], second.latents[:5])
    assert [one.name for one in make("in")] == ["in/a.png", "in/b.png"]
    assert len(make(["in/a.png"])) == 1
    assert [one.sample for one in make("in/a.png", samples=2)] == [0, 1]
    both = make(["in/a.png", "in/b.png"], multi_image="stochastic", steps=(2, 1))
    assert both.name == "in/a.png, in/b.png"


def test_python_takes_students_as_paths_and_as_objects(
    go: Go, tiny_pipeline: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    @dataclass
    class Run:
        folder: Path

    picture(Path("disc.png"))
    make = python(tiny_pipeline, tiny_encoder)
    folder = student(tmp_path / "slat")
    of_path, of_object = make("disc.png", student=folder), make("disc.png", student=[Run(folder)])
    assert torch.equal(of_path.latents, of_object.latents)
    assert not torch.equal(of_path.latents[:5], make("disc.png", student="none").latents[:5])
    with pytest.warns(UserWarning, match="made for 1, 2 steps, got 3"):
        make("disc.png", student=str(folder), steps=3)
    for wrong, text in (
        ({"steps": 1.5}, "--steps: got 1.5"),
        ({"steps": (1, 2, 3)}, "a number from 1 on, or two"),
        ({"device": "tpu9"}, "--device: got 'tpu9'"),
        ({"stpes": 1}, "unknown option of generate 'stpes'"),
        ({"stpes": 1}, "did you mean 'steps'?"),
        ({"background": "blur"}, "unknown --background"),
        ({"student": ["none", "x"]}, "'none' alone"),
        ({"backbone": "toy"}, "'toy' does not offer `fewstep generate`; accepted: trellis"),
    ):
        with pytest.raises(FewstepError, match=re.escape(text)):
            make("disc.png", **wrong)
    with pytest.raises(FewstepError, match="got 3; accepted: a picture"):
        make(3)


def test_the_shipped_chair_in_python_and_on_the_command_line(tmp_path: Path) -> None:
    chair = Path(__file__).parent.parent / "docs" / "pictures" / "chair.png"
    assert main(["generate", str(chair), "-o", str(tmp_path / "cli.npz"), "--steps", "1", "--no-preview"]) == 0
    result = generate(chair, steps=1)
    assert result.save(tmp_path / "python.npz").read_bytes() == (tmp_path / "cli.npz").read_bytes()
    assert len(result.coords) > 500


NEEDLESS = "torch._dynamo sympy scipy trimesh matplotlib triton transformers pandas"  # seconds of imports


def test_generate_imports_what_it_needs_and_no_more(cli: Cli) -> None:
    """Counted, not timed: seconds depend on what else the machine does."""
    chair = Path(__file__).parent.parent / "docs" / "pictures" / "chair.png"
    code = (
        "import sys; from fewstep.cli import main; assert main(sys.argv[2:]) == 0; "
        "print('imported:', *sorted(set(sys.argv[1].split()) & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, NEEDLESS, "generate", str(chair), "-o", "a.glb", "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cli.folder, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"
