"""The Python API: what it loads, and that it does what the command line does."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fewstep
from fewstep.cli import main

SMALL = {"train": {"steps": 4, "batch_size": 8, "threads": 1}, "config": {"backbone": {"pretrain": 2, "width": 8}}}
WORDS = ("train.steps=4", "train.batch_size=8", "train.threads=1", "backbone.pretrain=2", "backbone.width=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fewstep.Run:
    return fewstep.distill("mdt-vm", "toy", out=tmp_path_factory.mktemp("runs") / "a", **SMALL)


def test_importing_loads_no_torch() -> None:
    code = (
        "import sys, fewstep\n"
        "assert {'distill', 'load', 'bench', 'generate'} <= set(dir(fewstep))\n"
        "print([m for m in ('torch', 'numpy', 'rich', 'typer', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        fewstep.distil  # noqa: B018


def test_every_public_name_can_be_loaded() -> None:
    for name in fewstep.__all__:
        assert getattr(fewstep, name) is not None


def test_python_and_the_command_line_train_the_same_student(run: fewstep.Run, tmp_path: Path) -> None:
    assert main(["distill", "-m", "mdt-vm", "-b", "toy", "-o", str(tmp_path / "b"), *WORDS]) == 0
    ours, theirs = (folder / "student" / "model.safetensors" for folder in (run.folder, tmp_path / "b"))
    assert ours.read_bytes() == theirs.read_bytes()
    config = json.loads((run.folder / "config.json").read_text())
    assert config["sources"]["train.steps"] == config["sources"]["backbone.width"] == "Python"


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 5\n[train]\nsteps = 2\nlr = 0.5\nbatch_size = 4\n[backbone]\npretrain = 1\nwidth = 8\n")
    given = {"overrides": ["train.steps=3", "train.lr=0.25"], "train": {"lr": 0.125}, "config": file}
    made = fewstep.distill("mdt-vm", "toy", out=tmp_path / "run", **given)
    config = json.loads((made.folder / "config.json").read_text())
    assert (config["config"]["seed"], config["config"]["train"]["steps"], config["config"]["train"]["lr"]) == (
        5,
        3,
        0.125,
    )
    assert config["sources"]["seed"] == str(file)
    assert config["sources"]["train.steps"] == "command line"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trian": {"steps": 1}}, "unknown key 'trian'.*did you mean 'train'"),
        ({"train": {"stpes": 1}}, "unknown key 'train.stpes'.*did you mean 'train.steps'"),
        ({"train": {"steps": 0}}, "train.steps: got 0; accepted: an integer >= 1"),
        ({"config": 3}, "config: got 3; accepted: a TOML file's path, or nested tables"),
        ({"preset": "papre"}, "unknown preset 'papre'.*did you mean 'paper'"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(fewstep.FewstepError, match=f"(?s){message}"):
        fewstep.distill("mdt-vm", "toy", out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_callbacks_see_every_logged_row_and_may_end_the_run(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    tables = {**SMALL, "train": {**SMALL["train"], "checkpoint_every": 2, "log_every": 1}}
    made = fewstep.distill("mdt-vm", "toy", out=tmp_path / "a", callbacks=[rows.append], **tables)
    assert rows == made.metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]

    def stop(row: dict[str, object]) -> None:
        if row["step"] == 3:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fewstep.distill("mdt-vm", "toy", out=tmp_path / "b", callbacks=[stop], **tables)
    again = fewstep.distill("mdt-vm", "toy", out=tmp_path / "b", resume=True, **tables)
    weights = [(folder / "student" / "model.safetensors").read_bytes() for folder in (tmp_path / "a", again.folder)]
    assert weights[0] == weights[1]


def test_a_student_is_sampled_by_its_contract(run: fewstep.Run) -> None:
    student = fewstep.load(run)
    assert fewstep.load(run.folder).folder == fewstep.load(str(run.folder)).folder
    prompts = student.prompts(5)
    latents = student.sample(prompts, seed=3)
    assert latents.shape == prompts.x0.shape
    assert torch.equal(latents, student.sample(prompts, steps=student.contract.steps[0], seed=3))
    assert not torch.equal(latents, student.sample(prompts, seed=4))
    with pytest.warns(UserWarning, match="made for sampler 'consistency', got 'euler'"):
        student.sample(prompts, sampler="euler")
    with pytest.raises(fewstep.FewstepError, match="steps: got 0"):
        student.sample(prompts, steps=0)


def test_numbers_that_cannot_be_are_named(run: fewstep.Run) -> None:
    student = fewstep.load(run)
    for wrong, message in (
        ({"steps": 1.5}, "steps: got 1.5; accepted: an integer from 1 on"),
        ({"steps": math.nan}, "steps: got nan"),
        ({"seed": "x"}, "seed: got 'x'; accepted: an integer from 0 on"),
        ({"seed": -1}, "seed: got -1"),
        ({"prompts": -1}, "prompts: got -1; accepted: an integer from 1 on"),
        ({"prompts": 0}, "prompts: got 0"),
    ):
        with pytest.raises(fewstep.FewstepError, match=re.escape(message)):
            student.sample(**wrong)
    with pytest.raises(fewstep.FewstepError, match="count: got 0"):
        student.prompts(count=0)
    with pytest.raises(fewstep.FewstepError, match="student: got 3; accepted: a run"):
        fewstep.load(3)  # type: ignore[arg-type]


def test_a_student_as_the_teacher_gives_a_warning(run: fewstep.Run, tmp_path: Path) -> None:
    tables = {**SMALL, "config": {"backbone": {"teacher": str(run.folder)}}}
    with pytest.warns(UserWarning, match="is a student of mdt-vm, made for 1, 2, 4 steps, not a teacher's flow"):
        fewstep.distill("cm", "toy", out=tmp_path / "run", **tables)


def test_a_suite_that_does_not_say_what_it_wrote_is_named(
    run: fewstep.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = type(run.student().suite)
    monkeypatch.setattr(suite, "write", lambda self, objects, path, prompts=None: None)
    assert main(["sample", str(run.folder), "-n", "6", "-o", str(tmp_path / "a.png")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{suite.__name__}.write: returned None; accepted: the list of files that it wrote" in said


def test_python_and_the_command_line_draw_the_same_samples(run: fewstep.Run, tmp_path: Path) -> None:
    assert main(["sample", str(run.folder), "-n", "6", "--seed", "2", "-o", str(tmp_path / "a.png")]) == 0
    student = run.student()
    prompts = student.prompts(count=6)
    student.save(student.sample(prompts, seed=2), prompts, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_students_are_found_by_name() -> None:
    shipped = fewstep.load("trellis/pcm", device="cpu")
    assert shipped.info.method == "pcm"
    for name, backbone in {
        "mdt-vd": "trellis",
        "slat-mdt-vd": "trellis-slat",
        "trellis-slat/mdt-vd": "trellis-slat",
    }.items():
        assert fewstep.load(name, device="cpu").info.backbone == backbone
    for name in ("", "a wooden chair " * 30):
        with pytest.raises(fewstep.FewstepError, match="accepted: a folder"):
            fewstep.load(name)
    with pytest.raises(fewstep.FewstepError, match=r"no such folder; accepted: .*did you mean 'trellis/pcm'"):
        fewstep.load("trellispcm")


def test_objects_show_themselves(run: fewstep.Run) -> None:
    assert str(run.folder) in run._repr_html_()
    student = run.student()
    assert "mdt-vm" in student._repr_html_()
    assert "consistency" in student._repr_html_()
    assert "mdt-vm of toy" in repr(student)
    assert [row["step"] for row in run.metrics()] == [4]
