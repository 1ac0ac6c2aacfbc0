"""A pipeline folder with students in it: the reference's layout, and the same objects after reloading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep_trellis.pipeline.export import sampler, save_pipeline
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.recipe import Asked, Recipe, recipe_of
from fewstep_trellis.pipeline.request import Prompt, Request
from fewstep_trellis.pipeline.run import Runner
from fewstep_trellis.pipeline.students import Student, find_students
from pipeline_helpers import COND, MODELS, ROLES, description, network
from safetensors import safe_open
from test_pipeline_students import distilled

from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance
from fewstep.errors import FewstepError

REQUEST = Request(Prompt(torch.randn(1, 5, COND, generator=torch.Generator().manual_seed(1))), samples=2)
EULER = Contract(sampler="euler", steps=(2,), rescale_t=3.0, guidance=1.0)
# What the reference's sampler takes beside the model, the noise and the two conditions.
TAKEN = {"steps", "rescale_t", "cfg_strength", "cfg_interval"}


def chosen(folder: Path, *students: Path, **asked: Any) -> tuple[Pipeline, dict[str, Student], dict[str, Recipe]]:
    pipeline = Pipeline.open(folder)
    found = find_students(map(str, students), pipeline)
    recipes = {
        stage: recipe_of(pipeline.spec.sampler(stage), found.get(stage), Asked(**asked))[0] for stage in ("ss", "slat")
    }
    return pipeline, found, recipes


@pytest.mark.parametrize("stages", [("ss",), ("slat",), ("ss", "slat")])
def test_what_is_written_gives_the_same_objects(tmp_path: Path, tiny_pipeline: Path, stages: tuple[str, ...]) -> None:
    pipeline, students, recipes = chosen(tiny_pipeline, *(distilled(tmp_path / s, s, EULER) for s in stages))
    before = Runner(pipeline, recipes, students)(REQUEST, ["slat_decoder_gs"])
    save_pipeline(tmp_path / "out", pipeline, students, recipes)
    again, none, same = chosen(tmp_path / "out")
    assert none == {}
    after = Runner(again, same)(REQUEST, ["slat_decoder_gs"])
    assert torch.equal(before.latents, after.latents)
    assert torch.equal(before.decoded["slat_decoder_gs"][1].xyz, after.decoded["slat_decoder_gs"][1].xyz)


def test_the_folder_is_the_references_layout(tmp_path: Path, tiny_pipeline: Path) -> None:
    pipeline, students, recipes = chosen(tiny_pipeline, distilled(tmp_path / "slat", "slat", EULER))
    save_pipeline(tmp_path / "out", pipeline, students, recipes)
    written = json.loads((tmp_path / "out/pipeline.json").read_text())
    models = {role: f"ckpts/{name}" for role, name in ROLES.items()} | {"slat_flow_model": "ckpts/slat_flow_student"}
    of_student = {
        "name": "FlowEulerGuidanceIntervalSampler",
        "args": {"sigma_min": 1e-5},
        "params": {"steps": 2, "cfg_strength": 0.0, "cfg_interval": [1.0, 0.0], "rescale_t": 3.0},
    }
    assert written == description(models=models, slat_sampler=of_student)
    for role, stem in models.items():
        config = json.loads((tmp_path / f"out/{stem}.json").read_text())
        assert config["name"].removeprefix("Elastic") == MODELS[ROLES[role]][0].removeprefix("Elastic")
        assert config["args"]["use_fp16"] is True
        with safe_open(tmp_path / f"out/{stem}.safetensors", "pt") as file:
            assert set(file.keys()) == set(network(ROLES[role]).state_dict())


@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 1), (3.5, 2)])
def test_the_sampler_says_the_same_in_the_references_words(tiny_pipeline: Path, guidance: float, steps: int) -> None:
    recipe = Recipe("euler", steps, Guidance(guidance), 2.5)
    written = sampler(recipe, Pipeline.open(tiny_pipeline), "ss")
    params = written["params"]
    assert params.keys() <= TAKEN
    low, high = params["cfg_interval"]
    evaluations = [2 if low <= t <= high else 1 for t in recipe.grid[:-1]]
    assert evaluations == [1 if guidance == 1.0 else 2] * steps
    assert 1 + params["cfg_strength"] == guidance


def test_half_precision_halves_the_student(tmp_path: Path, tiny_pipeline: Path) -> None:
    pipeline, students, recipes = chosen(tiny_pipeline, distilled(tmp_path / "ss", "ss", EULER))
    save_pipeline(tmp_path / "half", pipeline, students, recipes, half=True)
    with safe_open(tmp_path / "half/ckpts/ss_flow_student.safetensors", "pt") as file:
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {"torch.float16"}  # noqa: SIM118
    assert Pipeline.open(tmp_path / "half").model("sparse_structure_flow_model")


@pytest.mark.parametrize(
    ("name", "steps", "fine"),
    [("consistency", 1, True), ("consistency", 2, False), ("heun", 1, False), ("jump", 1, False)],
)
def test_a_sampler_that_trellis_lacks(tmp_path: Path, tiny_pipeline: Path, name: str, steps: int, fine: bool) -> None:
    contract = Contract(sampler=name, steps=(steps,))
    pipeline, students, recipes = chosen(tiny_pipeline, distilled(tmp_path / "ss", "ss", contract))
    if not fine:
        with pytest.raises(FewstepError, match="TRELLIS has Euler steps only"):
            save_pipeline(tmp_path / "out", pipeline, students, recipes)
        assert not (tmp_path / "out").exists()
        return
    save_pipeline(tmp_path / "out", pipeline, students, recipes)
    before = Runner(pipeline, recipes, students)(REQUEST, [])
    again, _, same = chosen(tmp_path / "out")
    assert torch.allclose(before.latents, Runner(again, same)(REQUEST, []).latents, atol=1e-5)


def test_a_student_that_takes_the_guidance_strength_is_no_pipeline_of_trellis(
    tmp_path: Path, tiny_pipeline: Path
) -> None:
    contract = Contract(steps=(1,), strength=3.0, strengths=(1.0, 5.0))
    pipeline, students, recipes = chosen(tiny_pipeline, distilled(tmp_path / "ss", "ss", contract))
    assert str(recipes["ss"]) == "1 step, euler, guidance 4 as an input"
    with pytest.raises(FewstepError, match=r"takes the guidance strength as an input .*TRELLIS's loader"):
        save_pipeline(tmp_path / "out", pipeline, students, recipes)
    asked, said = recipe_of(pipeline.spec.sampler("ss"), students["ss"], Asked(guidance=7.0))
    assert asked.contract is not None
    assert (asked.contract.strength, asked.guidance.scale) == (6.0, 1.0)
    assert said == [f"{students['ss'].path}: the student was made for guidance 2 to 6, got 7"]


def test_nothing_is_overwritten_and_nothing_half_is_left(
    tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, students, recipes = chosen(tiny_pipeline, distilled(tmp_path / "ss", "ss", EULER))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").write_text("mine")
    with pytest.raises(FewstepError, match="nothing is overwritten"):
        save_pipeline(tmp_path / "full", pipeline, students, recipes)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note"]

    def refuse(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", refuse)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FewstepError, match="No space left"):
        save_pipeline(tmp_path / "out", pipeline, students, recipes)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_two_roles_of_one_file_name_get_a_file_each(tmp_path: Path, tiny_pipeline: Path) -> None:
    from pipeline_helpers import describe

    shutil.copytree(tiny_pipeline, tmp_path / "p")
    (tmp_path / "p/other").mkdir()
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"p/ckpts/slat_dec_gs{suffix}").rename(tmp_path / f"p/other/ss_dec{suffix}")
    models = {role: f"ckpts/{name}" for role, name in ROLES.items()} | {"slat_decoder_gs": "other/ss_dec"}
    describe(tmp_path / "p", models=models)
    pipeline, students, recipes = chosen(tmp_path / "p", distilled(tmp_path / "ss", "ss", EULER))
    save_pipeline(tmp_path / "out", pipeline, students, recipes)
    assert type(Pipeline.open(tmp_path / "out").model("slat_decoder_gs")).__name__ == "SLatGaussianDecoder"
    assert type(Pipeline.open(tmp_path / "out").model("sparse_structure_decoder")).__name__ == "SparseStructureDecoder"
