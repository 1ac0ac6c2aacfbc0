"""A whole pipeline folder with students in place of its flows, in the layout that TRELLIS itself loads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.core.times import step_grid
from fewstep.errors import FewstepError
from fewstep.files import check_place, new_file, new_folder, write_json
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.normalisation import PIPELINE, Normalisation
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.recipe import Recipe
from fewstep_trellis.pipeline.spec import NAMES, STAGES
from fewstep_trellis.pipeline.students import Student

FOLDER = "ckpts"
NO_GUIDANCE: dict[str, Any] = {"cfg_strength": 0.0, "cfg_interval": [1.0, 0.0]}  # an interval that holds no time


def save_pipeline(
    folder: Path,
    pipeline: Pipeline,
    students: Mapping[str, Student],
    recipes: Mapping[str, Recipe],
    *,
    half: bool = False,
) -> None:
    """Write ``pipeline.json`` and ``ckpts/``; the folder appears whole or not at all.

    Args:
        folder: must not exist, or be empty.
        pipeline: everything but the students comes from it, as copies of its files.
        students: networks in place of the flows, by stage.
        recipes: how each stage is to be sampled; those of the students go into ``pipeline.json``.
        half: store the students' weights in half precision.

    Raises:
        FewstepError: a folder with something in it, a student that TRELLIS's own sampler cannot run, or a full disk.
    """
    check_new(folder)
    args = _described(pipeline, {stage: sampler(recipes[stage], pipeline, stage) for stage in students})
    with new_folder(folder) as temp:
        for role, stem in args["models"].items():
            stage = next((stage for stage, flow in STAGES.items() if flow == role), "")
            if stage in students:
                _save_student(temp / stem, students[stage], args, half)
            else:
                copy_pair(pipeline.stem(role), temp / stem)
        name = next(name for name, kind in NAMES.items() if kind == pipeline.spec.kind)
        write_json(temp / PIPELINE, {"name": name, "args": args})


def sampler(recipe: Recipe, pipeline: Pipeline, stage: str) -> dict[str, Any]:
    """A recipe as a sampler of ``pipeline.json``.

    TRELLIS passes the negative condition to every sampler, but its plain one does not take it. So without guidance it
    is the guided sampler, with an interval that holds no time.

    Raises:
        FewstepError: for a sampler that TRELLIS does not have, or a student with an input that it does not know.
    """
    check_sampler(recipe, stage, "TRELLIS")
    guided = {"cfg_strength": recipe.guidance.scale - 1.0, "cfg_interval": list(recipe.guidance.interval)}
    return {
        "name": "FlowEulerGuidanceIntervalSampler",
        "args": pipeline.spec.sampler(stage).args.model_dump(),
        "params": {
            "steps": recipe.steps,
            **(guided if recipe.guidance.scale != 1.0 else NO_GUIDANCE),
            "rescale_t": recipe.rescale_t,
        },
    }


def check_sampler(recipe: Recipe, stage: str, project: str) -> None:
    """Raise FewstepError for a student that the samplers of ``project`` cannot run.

    These make Euler steps along a warped grid. One step of consistency sampling is one of Euler's.
    """
    if recipe.contract is not None and recipe.contract.strength is not None:
        raise FewstepError(
            f"stage {stage!r}: the student takes the guidance strength as an input (guidance_input in its model.json), "
            f"which {project}'s loader and samplers do not know; accepted: fewstep generate --student, or a student "
            "trained with one objective.guidance"
        )
    if recipe.grid != step_grid(recipe.steps, recipe.rescale_t):
        raise FewstepError(f"stage {stage!r}: the student has times of its own, which {project}'s samplers do not take")
    if recipe.sampler != "euler" and (recipe.steps > 1 or recipe.sampler != "consistency"):
        one = "; accepted: --steps 1, where they are the same" if recipe.sampler == "consistency" else ""
        raise FewstepError(
            f"stage {stage!r}: a student for sampler {recipe.sampler!r} in {recipe.steps} steps; {project} has Euler "
            f"steps only{one}"
        )


def _described(pipeline: Pipeline, samplers: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The ``args`` of the new ``pipeline.json``."""
    args = pipeline.spec.model_dump(mode="json", exclude_unset=True)
    for stage, key in (("ss", "sparse_structure_sampler"), ("slat", "slat_sampler")):
        args[key] = samplers.get(stage, args[key])
    args["models"] = _paths(pipeline, samplers)
    return args


def _paths(pipeline: Pipeline, students: Mapping[str, Any]) -> dict[str, str]:
    """Where each role's checkpoint goes: under its own file's name, a student's marked as one."""
    flows = {role: stage for stage, role in STAGES.items()}
    found: dict[str, str] = {}
    for role, value in pipeline.spec.models.items():
        stem = value.rpartition("/")[2] + ("_student" if flows.get(role) in students else "")
        taken = f"{FOLDER}/{stem}" in found.values()
        found[role] = f"{FOLDER}/{role if taken else stem}"
    return found


def _save_student(path: Path, student: Student, args: dict[str, Any], half: bool) -> None:
    flow = student.load()
    save_model(flow.model, path, dtype=torch.float16 if half else None)
    own: Normalisation | None = getattr(flow, "normalisation", None)
    if own is not None:
        args["slat_normalization"] = own.model_dump(mode="json")


def check_new(folder: Path) -> None:
    """Raise FewstepError unless the folder can be made, or is there and empty."""
    check_place("--out", folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FewstepError(f"--out: {str(folder)!r} exists; accepted: a new or an empty folder, nothing is overwritten")


def copy_pair(stem: Path, target: Path) -> None:
    """Copy a checkpoint's json and safetensors files; both paths are without suffix."""
    for suffix in (".json", ".safetensors"):
        with new_file(Path(f"{target}{suffix}")) as temp:
            shutil.copyfile(f"{stem}{suffix}", temp)
