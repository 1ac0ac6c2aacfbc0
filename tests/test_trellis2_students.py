"""Students of TRELLIS.2's stages: their files alone, of the official class and keys, make the same samples."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep_trellis.checkpoint import load_model, save_model
from fewstep_trellis2.latents import TextureCondition
from fewstep_trellis2.models import MODELS
from safetensors.torch import load_file, save_file
from test_trellis2_data import STAGES, TINY, WIDTH, roots  # noqa: F401

from fewstep.api.loading import load
from fewstep.api.students import Student
from fewstep.cli import main
from fewstep.core.layout import Packed
from fewstep.core.objective import Step


def distilled(method: str, name: str, file: Path, folder: Path, *more: str) -> tuple[Path, Path]:
    """A random teacher of a stage, and the checkpoint pair of a student after one iteration of a method."""
    beside = WIDTH if name == "texture" else 0
    model = STAGES[name](resolution=3, in_channels=WIDTH + beside, **TINY)
    torch.nn.init.normal_(model.out_layer.weight)
    teacher = save_model(model, folder / "teacher")
    keys = [f"backbone.teacher={folder / 'teacher'}", f"data.roots={file}", "data.image_size=16", "train.threads=1"]
    keys += ["train.steps=1", "train.batch_size=2", "train.lr=0.01", *more]
    keys += ["data.normalisation=stored"] * (name != "structure")
    keys += ["data.shape_normalisation=stored"] * (name == "texture")
    out = folder / "run"
    assert main(["distill", "-m", method, "-b", "trellis2", "--stage", name, "--out", str(out), *keys]) == 0
    return teacher, next(out.rglob("model.safetensors"))


@torch.no_grad()
def plainly(pair: Path, student: Student, batch: Any, *, two_time: bool = False) -> torch.Tensor:
    """Euler steps with the network of a checkpoint pair, from the noise of seed 0."""
    model, noise = load_model(pair, models=MODELS).eval(), Step(0, student.network.interpolant, seed=0)
    x, count = noise.randn_like(batch.x0, "noise"), batch.layout.batch_size
    where = (batch.layout,) if isinstance(batch.layout, Packed) else ()
    more = {"concat_cond": batch.cond.rows(batch.layout)} if isinstance(batch.cond, TextureCondition) else {}
    for t, s in pairwise(student.contract.grid(student.contract.steps[0])):
        end = {"s": torch.full((count,), 1000 * s)} if two_time else {}
        v = model(x, torch.full((count,), 1000 * t), batch.cond.tokens, *where, **more, **end)
        x = x - (t - s) * v
    return x


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(("method", "steps"), [("mdt-vd", 1), ("pcm", 4)])
def test_a_student_is_its_file(method: str, steps: int, name: str, roots: Path, tmp_path: Path) -> None:  # noqa: F811
    teacher, pair = distilled(method, name, roots, tmp_path)
    known, wanted = (json.loads(path.with_suffix(".json").read_text()) for path in (pair, teacher))
    assert (known["name"], known["args"]) == (wanted["name"], wanted["args"])
    own, theirs = load_file(pair), load_file(teacher)
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in theirs.items()}
    assert not torch.equal(own["out_layer.weight"], theirs["out_layer.weight"])
    student = load(tmp_path / "run", device="cpu")
    assert (student.contract.sampler, student.contract.steps[0]) == ("euler", steps)
    batch = student.prompts(2)
    torch.testing.assert_close(student.sample(batch), plainly(pair, student, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["structure", "texture"])
def test_a_second_time_is_what_the_official_class_lacks(name: str, roots: Path, tmp_path: Path) -> None:  # noqa: F811
    teacher, pair = distilled("meanflow", name, roots, tmp_path)
    more = load_file(pair).keys() - load_file(teacher).keys()
    assert more
    assert all(key.startswith("jump_embedder") for key in more)
    student = load(tmp_path / "run", device="cpu")
    batch = student.prompts(2)
    made = plainly(pair, student, batch, two_time=True)
    torch.testing.assert_close(student.sample(batch), made, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["structure", "texture"])
def test_a_policy_widens_the_output_layer(name: str, roots: Path, tmp_path: Path) -> None:  # noqa: F811
    teacher, pair = distilled("pi-flow", name, roots, tmp_path)
    weights, facts = load_file(pair), json.loads(pair.with_suffix(".json").read_text())
    assert facts["args"].pop("points") == 10
    assert facts == json.loads(teacher.with_suffix(".json").read_text())
    channels = len(weights["out_layer.bias"]) // 10
    assert not torch.equal(weights["out_layer.bias"][:channels], weights["out_layer.bias"][-channels:])
    # One step ends at the data that the first velocity predicts: an Euler step of the official class with it alone.
    first = {key: value[:channels] if key.startswith("out_layer") else value for key, value in weights.items()}
    save_file(first, tmp_path / "first.safetensors")
    (tmp_path / "first.json").write_text(json.dumps(facts))
    student = load(tmp_path / "run", device="cpu")
    batch = student.prompts(2)
    made = plainly(tmp_path / "first.safetensors", student, batch)
    torch.testing.assert_close(student.sample(batch), made, rtol=1e-5, atol=1e-6)
