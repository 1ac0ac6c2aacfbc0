"""What a run will do: pipeline, students, recipes, jobs, files. All of it is checked before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fewstep.errors import FewstepError
from fewstep_trellis.generate.inputs import Job, picture_jobs, text_jobs
from fewstep_trellis.generate.options import NONE, Models, Options, check_students
from fewstep_trellis.generate.outputs import SUFFIXES, Target, check_free, formats_of, targets
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.recipe import Asked, Recipe, recipe_of
from fewstep_trellis.pipeline.spec import GAUSSIANS, MESH, RADIANCE, STAGES
from fewstep_trellis.pipeline.students import Student, find_students
from fewstep_trellis.shipped import NANO, student_for

T = TypeVar("T")
DECODERS = {"glb": MESH, "ply": GAUSSIANS, "rf": RADIANCE}
STAGE_NAMES = {"ss": "structure", "slat": "latents"}


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
    check_students(models.students)
    pipeline = Pipeline.open(models.pipeline)
    students = find_students(_names(models), pipeline)
    recipes, said = {}, []
    for stage in STAGES:
        asked = Asked(_of(models.steps, stage), _of(models.guidance, stage), models.sampler)
        recipes[stage], more = recipe_of(pipeline.spec.sampler(stage), students.get(stage), asked)
        said += more
    return Chosen(pipeline, students, recipes, said)


def _names(models: Models) -> list[str]:
    """What ``--student`` says; without it the shipped students whose contract holds the steps asked for."""
    if models.students:
        return [name for name in models.students if name != NONE]
    if models.teacher is not None or models.steps is None:
        return []
    found = [student_for(stage, steps) for stage, steps in models.steps.items()]
    return [str(path) for path in found if path is not None]


def _of(values: Mapping[str, T] | None, stage: str) -> T | None:
    return None if values is None else values[stage]


@dataclass(frozen=True)
class Plan:
    """The jobs of a run and where their files go."""

    jobs: list[Job]
    targets: list[Target]
    formats: list[str]
    preview: bool

    @property
    def decoders(self) -> list[str]:
        """Roles of the decoders that the formats need."""
        return [DECODERS[name] for name in self.formats if name in DECODERS]

    def files(self, target: Target) -> list[Path]:
        """The paths that a job may write."""
        previews = [target.preview] if self.preview else []
        return target.paths([SUFFIXES[name] for name in self.formats]) + previews


def plan(options: Options, chosen: Chosen) -> Plan:
    """What will be made and written.

    Raises:
        FewstepError: inputs or outputs that cannot be used, or a format for which the pipeline has no decoder.
    """
    jobs = _jobs(options, chosen.pipeline.spec.kind)
    formats = formats_of(options.formats, options.out)
    found = Plan(jobs, targets(jobs, options.out, options.samples), formats, options.preview)
    for role in found.decoders:
        if role not in chosen.pipeline.spec.models:
            raise FewstepError(f"--formats {','.join(formats)}: needs {role}, which {chosen.pipeline.name} lacks")
    files = [path for target in found.targets for path in found.files(target)]
    check_free(files, [path for job in jobs for path in job.pictures], force=options.force)
    return found


def _jobs(options: Options, kind: str) -> list[Job]:
    if kind == "text":
        if options.multi_image:
            raise FewstepError("--multi-image: this pipeline is for texts; accepted: an image pipeline")
        return text_jobs((*options.inputs, *options.texts))
    if options.texts:
        raise FewstepError(
            "--text: this pipeline is for pictures; accepted: a text pipeline, as microsoft/TRELLIS-text-large"
        )
    return picture_jobs(options.inputs, together=options.multi_image is not None)
