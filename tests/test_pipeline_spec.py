"""``pipeline.json`` to the letter: each value takes effect, and what cannot be used is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.recipe import Asked, Recipe, recipe_of
from fewstep_trellis.pipeline.spec import read_spec
from pipeline_helpers import LATENT_SAMPLER, STRUCTURE_SAMPLER, describe, description

from fewstep.core.guidance import Guidance
from fewstep.errors import FewstepError


def sampler(name: str = "FlowEulerGuidanceIntervalSampler", sigma_min: float = 1e-5, **params: Any) -> dict[str, Any]:
    return {"name": name, "args": {"sigma_min": sigma_min}, "params": params}


def recipe(folder: Path, stage: str, asked: Asked | None = None) -> Recipe:
    spec = read_spec(folder / "pipeline.json").sampler(stage)
    found, said = recipe_of(spec, None, asked or Asked())
    assert said == []
    return found


def test_both_samplers_are_read_as_they_stand(tmp_path: Path) -> None:
    describe(tmp_path)
    assert recipe(tmp_path, "ss") == Recipe("euler", 3, Guidance(2.5, (0.5, 0.95)), 2.0)
    assert recipe(tmp_path, "slat") == Recipe("euler", 2, Guidance(4.0, (0.0, 1.0)), 3.0)


@pytest.mark.parametrize(
    ("params", "changed"),
    [
        ({"steps": 7}, {"steps": 7}),
        ({"cfg_strength": 0.25}, {"guidance": Guidance(1.25)}),
        ({"cfg_interval": [0.1, 0.2]}, {"guidance": Guidance(4.0, (0.1, 0.2))}),
        ({"rescale_t": 0.5}, {"rescale_t": 0.5}),
    ],
)
def test_a_parameter_left_out_has_the_references_default(
    tmp_path: Path, params: dict[str, Any], changed: dict[str, Any]
) -> None:
    describe(tmp_path, slat_sampler=sampler(**params))
    defaults = {"sampler": "euler", "steps": 50, "guidance": Guidance(4.0), "rescale_t": 1.0}
    assert recipe(tmp_path, "slat") == Recipe(**{**defaults, **changed})
    assert recipe(tmp_path, "ss").steps == STRUCTURE_SAMPLER["params"]["steps"]


def test_the_class_of_the_sampler_decides_what_guidance_it_has(tmp_path: Path) -> None:
    describe(tmp_path, slat_sampler=sampler("FlowEulerSampler", steps=4))
    assert recipe(tmp_path, "slat").guidance == Guidance(1.0)
    describe(tmp_path, slat_sampler=sampler("FlowEulerCfgSampler", steps=4, cfg_strength=2.0))
    assert recipe(tmp_path, "slat").guidance == Guidance(3.0)


def test_what_is_asked_for_wins_key_by_key(tmp_path: Path) -> None:
    describe(tmp_path)
    found = recipe(tmp_path, "ss", Asked(steps=5, guidance=2.0, sampler="heun"))
    assert found == Recipe("heun", 5, Guidance(2.0, (0.5, 0.95)), 2.0)


def test_sigma_min_and_normalisation_and_encoder_come_from_the_file(tmp_path: Path) -> None:
    describe(tmp_path, slat_sampler=sampler(sigma_min=0.125), image_cond_model="dinov2_vits14_reg")
    spec = read_spec(tmp_path / "pipeline.json")
    assert spec.sampler("slat").args.sigma_min == 0.125
    assert spec.slat_normalization.std == (1.5, 0.5, 2.0, 1.0)
    assert (spec.kind, spec.encoder) == ("image", "dinov2_vits14_reg")
    describe(tmp_path, image_cond_model=None, text_cond_model="openai/clip-vit-large-patch14")
    assert read_spec(tmp_path / "pipeline.json").kind == "text"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"slat_sampler": sampler(steps=0)}, "slat_sampler.params.steps: got 0"),
        ({"slat_sampler": sampler(cfg_strenght=1.0)}, "did you mean 'slat_sampler.params.cfg_strength'"),
        (
            {"slat_sampler": sampler("FlowEulerSampler", cfg_strength=1.0)},
            "FlowEulerSampler does not take cfg_strength",
        ),
        ({"slat_sampler": sampler("FlowEulerCfgSampler", cfg_interval=[0, 1])}, "does not take cfg_interval"),
        ({"slat_sampler": sampler("FlowHeunSampler")}, "slat_sampler.name: got 'FlowHeunSampler'"),
        ({"slat_sampler": {"name": "FlowEulerSampler", "params": {}}}, "slat_sampler.args: missing"),
        ({"slat_normalization": {"mean": [0.0], "std": [0.0]}}, "slat_normalization.std"),
        ({"models": {"slat_flow_model": "ckpts/x"}}, "sparse_structure_flow_model, sparse_structure_decoder missing"),
        ({"image_cond_model": None}, "exactly one of image_cond_model and text_cond_model"),
        ({"sparse_structure_sampler": None}, "sparse_structure_sampler: missing"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_key(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    describe(tmp_path, **changes)
    with pytest.raises(FewstepError) as error:
        read_spec(tmp_path / "pipeline.json")
    assert text in str(error.value)
    assert str(tmp_path / "pipeline.json") in str(error.value)


def test_a_foreign_pipeline_class_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps({**description(), "name": "TrellisImageTo4DPipeline"}))
    with pytest.raises(FewstepError, match="did you mean 'TrellisImageTo3DPipeline'"):
        read_spec(file)
    file.write_text("[]")
    with pytest.raises(FewstepError, match="no pipeline description"):
        read_spec(file)
    file.write_text(json.dumps({**description(), "name": "TrellisTextTo3DPipeline"}))
    with pytest.raises(FewstepError, match=r"needs args\.text_cond_model"):
        read_spec(file)


def test_a_key_that_nobody_reads_is_named(tmp_path: Path) -> None:
    describe(tmp_path, colour_model="x")
    with pytest.warns(UserWarning, match=r"args.colour_model is not used"):
        read_spec(tmp_path / "pipeline.json")


def test_a_role_that_is_missing_is_an_error_when_it_is_asked_for(tmp_path: Path) -> None:
    models = {**description()["args"]["models"]}
    del models["slat_decoder_mesh"]
    describe(tmp_path, models=models, slat_sampler=LATENT_SAMPLER)
    with pytest.raises(FewstepError, match=r"unknown model of .*'slat_decoder_mesh'"):
        Pipeline.open(tmp_path).model("slat_decoder_mesh")
