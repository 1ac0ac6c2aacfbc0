"""Which networks a run uses and how they are sampled, settled before any weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from fewstep.errors import FewstepError, invalid
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.recipe import RELEASED, Asked, Recipe, recipe_of
from fewstep_trellis.pipeline.spec import STAGES
from fewstep_trellis.pipeline.students import Student, find_students
from fewstep_trellis.shipped import NANO, student_for

T = TypeVar("T")
Number = TypeVar("Number", int, float)
NONE = "none"  # --student none: the teacher, even where a shipped student would fit
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
    """``Models`` from what the command line or a Python caller gives.

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
    """One number for all stages, or one for each of ``stages`` (with their names for messages); None stays None.

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
        return found + [
            told(name, self.students.get(stage), self.recipes[stage]) for stage, name in STAGE_NAMES.items()
        ]


def told(stage: str, student: Student | None, recipe: Recipe) -> str:
    """Which network a stage uses, and how it is sampled."""
    who = f"student {student.label} ({student.path})" if student else "the pipeline's own flow"
    return f"{stage}: {who}, {recipe}"


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
    recipes, said = recipes_of(pipeline.spec, STAGE_NAMES, students, models)
    return Chosen(pipeline, students, recipes, said)


def recipes_of(
    spec: Any,
    names: Mapping[str, str],
    students: Mapping[str, Student],
    models: Models,
    group: Callable[[str], str] = str,
    released: tuple[int, ...] = RELEASED,
) -> tuple[dict[str, Recipe], list[str]]:
    """How each stage is sampled, and what is to be said about it.

    Args:
        spec: of the pipeline, with a ``sampler`` for each stage.
        names: of the stages that are run, in order, for messages.
        students: by stage.
        models: what the user asks for.
        group: a stage to its key in ``models.steps`` and ``models.guidance``.
        released: as of ``recipe_of``.
    """

    def asked(values: Mapping[str, T] | None, stage: str) -> T | None:
        return None if values is None else values[group(stage)]

    found, said = dict[str, Recipe](), list[str]()
    for stage, name in names.items():
        own, student = spec.sampler(stage), students.get(stage)
        wanted = Asked(asked(models.steps, stage), asked(models.guidance, stage), models.sampler)
        found[stage], more = recipe_of(own, student, wanted, released)
        said += more
        steps, made_for = found[stage].steps, own.params.steps
        if student is None and NONE not in models.students and 2 * steps < made_for:
            said.append(
                f"{name}: no student for this stage; the pipeline's own flow, made for {made_for} steps, is sampled in "
                f"{steps}"
            )
    return found, said
