"""Which networks a run uses and how they are sampled, settled before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fewstep_trellis.generate import models as trellis
from fewstep_trellis.generate.models import NONE, by_stage
from fewstep_trellis.pipeline.recipe import Asked, Recipe, recipe_of
from fewstep_trellis.pipeline.students import Student

from fewstep.errors import unknown
from fewstep_trellis2.pipeline.loading import Pipeline
from fewstep_trellis2.pipeline.spec import KINDS, SAMPLERS, STAGE, group
from fewstep_trellis2.pipeline.students import find_students

RELEASED = "microsoft/TRELLIS.2-4B"
T = TypeVar("T")
NAMES = {stage: stage for stage in SAMPLERS}


@dataclass(frozen=True)
class Models(trellis.Models):
    """What the user asks for.

    Args: as of TRELLIS's. ``teacher`` None is the released pipeline, ``steps`` and ``guidance`` are by structure, shape
        and texture, and
        kind: which way through the stages; None: as ``pipeline.json`` says.
    """

    kind: str | None = None


def models_of(
    teacher: Any = None,
    student: Any = None,
    steps: Any = None,
    guidance: Any = None,
    sampler: str | None = None,
    kind: str | None = None,
) -> Models:
    """The same from what the command line or a Python caller gives, see TRELLIS's ``models_of``.

    Raises:
        FewstepError: numbers that cannot be used, an unknown kind, or "none" beside a student.
    """
    if kind is not None and kind not in KINDS:
        raise unknown("--type", kind, KINDS)
    common = trellis.models_of(teacher, student, sampler=sampler)
    return Models(
        common.teacher,
        common.students,
        by_stage("--steps", steps, int, 1, NAMES),
        by_stage("--guidance", guidance, float, 0.0, NAMES),
        sampler,
        kind=kind,
    )


@dataclass(frozen=True)
class Chosen:
    """The networks of a run and how they are sampled, by stage, with what is to be said about it."""

    pipeline: Pipeline
    kind: str
    students: dict[str, Student]
    recipes: dict[str, Recipe]
    warnings: list[str]

    def lines(self) -> list[str]:
        """Which model and students are used, a line each."""
        found = [f"pipeline: {self.pipeline.name}, type {self.kind}"]
        for stage, recipe in self.recipes.items():
            student = self.students.get(stage)
            who = f"student {student.label} ({student.path})" if student else "the pipeline's own flow"
            found.append(f"{stage}: {who}, {recipe}")
        return found


def choose(models: Models) -> Chosen:
    """Open the pipeline, find the students and settle each stage's recipe.

    Raises:
        FewstepError: anything that cannot be opened or does not fit.
    """
    pipeline = Pipeline.open(RELEASED if models.teacher is None else models.teacher)
    kind = models.kind or pipeline.spec.default_pipeline_type
    flows = KINDS[kind].flows
    students = find_students([name for name in models.students if name != NONE], pipeline, flows)
    recipes, said = {}, list[str]()
    for stage in (STAGE[role] for role in flows):
        spec, student = pipeline.spec.sampler(stage), students.get(stage)
        asked = Asked(_of(models.steps, stage), _of(models.guidance, stage), models.sampler)
        recipes[stage], more = recipe_of(spec, student, asked)
        said += more
        if student is None and NONE not in models.students and 2 * recipes[stage].steps < spec.params.steps:
            said.append(
                f"{stage}: no student for this stage; the pipeline's own flow, made for {spec.params.steps} steps, is "
                f"sampled in {recipes[stage].steps}"
            )
    return Chosen(pipeline, kind, students, recipes, said)


def _of(values: Mapping[str, T] | None, stage: str) -> T | None:
    return None if values is None else values[group(stage)]
