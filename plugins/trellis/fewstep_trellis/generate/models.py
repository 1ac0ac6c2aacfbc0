"""Which networks a run uses and how they are sampled, settled before any weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from fewstep.errors import FewstepError, invalid
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.recipe import Asked, Recipe, recipe_of
from fewstep_trellis.pipeline.spec import STAGES
from fewstep_trellis.pipeline.students import Student, find_students
from fewstep_trellis.shipped import NANO, student_for

T = TypeVar("T")
Number = TypeVar("Number", int, float)
NONE = "none"  # --student none: the teacher, also where a shipped student would do
STAGE_NAMES = {"ss": "structure", "slat": "latents"}


@dataclass(frozen=True)
class Models:
    """What the user asks for.

    Args:
        teacher: pipeline folder or hub name; None: the shipped nano model.
        students: what ``--student`` names, in order.
        steps: by stage; None: as the pipeline or the contract says.
        guidance: scale by stage, likewise.
        sampler: registered name, for both stages.
        encoder: name, folder or file of the encoder of conditions.
    """

    teacher: str | None = None
    students: tuple[str, ...] = ()
    steps: Mapping[str, int] | None = None
    guidance: Mapping[str, float] | None = None
    sampler: str | None = None
    encoder: str | None = None


def models_of(
    teacher: Any = None,
    student: Any = None,
    steps: Any = None,
    guidance: Any = None,
    sampler: str | None = None,
    encoder: Any = None,
) -> Models:
    """The same from what the command line or a Python caller gives.

    Args:
        teacher: name or path.
        student: name, path or an object with ``folder`` (a run, a student), or several of these.
        steps: N for both stages, (N, M) for structure and latents, or either as text, "N,M".
        guidance: likewise.
        sampler: registered name.
        encoder: name or path.

    Raises:
        FewstepError: numbers that cannot be used, or "none" beside a student.
    """
    several = student if isinstance(student, list | tuple) else [] if student is None else [student]
    students = tuple(str(getattr(one, "folder", one)) for one in several)
    options = [("--teacher", teacher), *(("--student", one) for one in students), ("--sampler", sampler)]
    for option, value in options:
        if value is not None and not str(value).strip():
            raise invalid(option, value, "a name (leave the option out for the default)")
    if NONE in students and len(students) > 1:
        raise FewstepError(f"--student: got {', '.join(students)}; accepted: students, or {NONE!r} alone")
    return Models(
        None if teacher is None else str(teacher),
        students,
        by_stage("--steps", steps, int, 1),
        by_stage("--guidance", guidance, float, 0.0),
        sampler,
        None if encoder is None else str(encoder),
    )


def by_stage(
    option: str,
    value: Any,
    read: Callable[[str], Number],
    least: Number,
    stages: Mapping[str, str] = MappingProxyType(STAGE_NAMES),
) -> dict[str, Number] | None:
    """One number for all stages, or one for each of ``stages``, which have names for the message; None stays None.

    Raises:
        FewstepError: something else, or a number below ``least``.
    """
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    try:
        values = [read(str(part)) for part in parts]
    except ValueError:
        values = []
    if len(values) not in (1, len(stages)) or not all(least <= number < 1e6 for number in values):
        several, example = {2: ("two", "2,1"), 3: ("three", "2,1,1")}[len(stages)]
        names = ",".join(stages.values())
        raise invalid(option, value, f"a number from {least} on, or {several} ({names}) such as {example}")
    return dict(zip(stages, values * (len(stages) // len(values)), strict=True))


@dataclass(frozen=True)
class Chosen:
    """The networks of a run and how they are sampled, with what is to be said about it."""

    pipeline: Pipeline
    students: dict[str, Student]
    recipes: dict[str, Recipe]
    warnings: list[str]

    def lines(self) -> list[str]:
        """Which model and students are used, a line each."""
        shipped = " (shipped nano model)" if self.pipeline.name == str(NANO) else ""
        found = [f"pipeline: {self.pipeline.name}{shipped}"]
        for stage, name in STAGE_NAMES.items():
            student = self.students.get(stage)
            who = f"student {student.label} ({student.path})" if student else "the pipeline's own flow"
            found.append(f"{name}: {who}, {self.recipes[stage]}")
        return found


def choose(models: Models) -> Chosen:
    """Open the pipeline, find the students and settle each stage's recipe.

    Raises:
        FewstepError: anything that cannot be opened or does not fit.
    """
    pipeline = Pipeline.open(NANO if models.teacher is None else models.teacher)
    students = find_students([name for name in models.students if name != NONE], pipeline)
    if models.teacher is None and models.steps is not None and NONE not in models.students:
        for stage in STAGES:
            if stage not in students and (path := student_for(stage, models.steps[stage])):
                students |= find_students([str(path)], pipeline)
    recipes, said = {}, []
    for stage in STAGES:
        spec, student = pipeline.spec.sampler(stage), students.get(stage)
        asked = Asked(_of(models.steps, stage), _of(models.guidance, stage), models.sampler)
        recipes[stage], more = recipe_of(spec, student, asked)
        said += more
        if student is None and NONE not in models.students and 2 * recipes[stage].steps < spec.params.steps:
            said.append(
                f"{STAGE_NAMES[stage]}: no student for this stage; the pipeline's own flow, made for "
                f"{spec.params.steps} steps, is sampled in {recipes[stage].steps}"
            )
    return Chosen(pipeline, students, recipes, said)


def _of(values: Mapping[str, T] | None, stage: str) -> T | None:
    return None if values is None else values[stage]
