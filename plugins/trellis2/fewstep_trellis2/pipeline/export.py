"""A whole pipeline folder with students in place of its flows, in the layout that TRELLIS.2 itself loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.normalisation import PIPELINE, Normalisation
from fewstep_trellis.pipeline.export import FOLDER, check_new, check_sampler, copy_pair
from fewstep_trellis.pipeline.recipe import Recipe
from fewstep_trellis.pipeline.students import Student

from fewstep.errors import FewstepError
from fewstep.files import new_folder, write_json
from fewstep_trellis2.pipeline.loading import Pipeline
from fewstep_trellis2.pipeline.spec import IMAGE, KINDS, SAMPLERS, STAGE, group


def save_pipeline(
    folder: Path,
    pipeline: Pipeline,
    students: Mapping[str, Student],
    recipes: Mapping[str, Recipe],
    *,
    kind: str,
    half: bool = False,
) -> None:
    """Write ``pipeline.json`` and ``ckpts/``; the folder appears whole or not at all.

    Args:
        folder: must not exist, or be empty.
        pipeline: everything but the students comes from it, as copies of its files.
        students: networks in place of the flows, by stage.
        recipes: how each stage is to be sampled; those of the students go into ``pipeline.json``.
        kind: becomes the default type.
        half: store the students' weights in bfloat16.

    Raises:
        FewstepError: a folder with something in it, a student that TRELLIS.2's own sampler cannot run, or a full disk.
    """
    check_new(folder)
    args = pipeline.spec.model_dump(mode="json", exclude_unset=True) | {"default_pipeline_type": kind}
    args |= _samplers(pipeline, students, recipes)
    args["models"] = {role: f"{FOLDER}/{role}" for role in pipeline.spec.models}
    with new_folder(folder) as temp:
        for role, stem in args["models"].items():
            student = students.get(STAGE[role]) if role in KINDS[kind].flows else None
            if student is None:
                copy_pair(pipeline.stem(role), temp / stem)
                continue
            flow = student.load()
            save_model(flow.model, temp / stem, dtype=torch.bfloat16 if half else None)
            own: Normalisation | None = getattr(flow, "normalisation", None)
            if own is not None:
                key = "tex_slat_normalization" if group(STAGE[role]) == "texture" else "shape_slat_normalization"
                args[key] = own.model_dump(mode="json")
        write_json(temp / PIPELINE, {"name": IMAGE, "args": args})


def _samplers(pipeline: Pipeline, students: Mapping[str, Student], recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """The samplers of the stages that have students, by key of ``pipeline.json``."""
    found: dict[str, Any] = {}
    for name, key in SAMPLERS.items():
        stages = [stage for stage in recipes if group(stage) == name]
        if not students.keys() & set(stages):
            continue
        if len({recipes[stage] for stage in stages}) > 1:
            ways = "; ".join(f"{stage}: {recipes[stage]}" for stage in stages)
            raise FewstepError(
                f"{' and '.join(stages)} are sampled in different ways ({ways}), and TRELLIS.2 has one sampler for "
                "both; accepted: students of both for the same steps, or a --type with one of them"
            )
        found[key] = _sampler(recipes[stages[0]], stages[0], pipeline)
    return found


def _sampler(recipe: Recipe, stage: str, pipeline: Pipeline) -> dict[str, Any]:
    check_sampler(recipe, stage, "TRELLIS.2")
    return {
        "name": "FlowEulerGuidanceIntervalSampler",
        "args": pipeline.spec.sampler(stage).args.model_dump(),
        "params": {
            "steps": recipe.steps,
            "guidance_strength": recipe.guidance.scale,
            "guidance_rescale": recipe.guidance.rescale,
            "guidance_interval": list(recipe.guidance.interval),
            "rescale_t": recipe.rescale_t,
        },
    }
