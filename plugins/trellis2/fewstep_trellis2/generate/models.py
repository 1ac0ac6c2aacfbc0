"""Which networks a run uses and how they are sampled, settled before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep_shapes3d.representations import Mesh
from fewstep_trellis.generate import models as trellis
from fewstep_trellis.generate.models import NONE, by_stage, recipes_of, told
from fewstep_trellis.pipeline.recipe import Recipe
from fewstep_trellis.pipeline.students import Student

from fewstep.errors import unknown
from fewstep_trellis2.flow import RELEASED
from fewstep_trellis2.pipeline.loading import AnyPipeline, Pipeline, TexturingPipeline
from fewstep_trellis2.pipeline.spec import (
    KINDS,
    SAMPLERS,
    SHAPE_DECODER,
    SHAPE_ENCODER,
    STAGE,
    STRUCTURE_DECODER,
    STRUCTURE_FLOW,
    TEXTURE_DECODER,
    group,
)
from fewstep_trellis2.pipeline.students import find_students
from fewstep_trellis2.pipeline.texture import given_mesh

TEXTURED = ("512", "1024")  # ways in which a given mesh is textured
NAMES = {stage: stage for stage in SAMPLERS}


@dataclass(frozen=True)
class Models(trellis.Models):
    """What the user asks for.

    Args: as of TRELLIS's. ``teacher`` None is the released pipeline, ``steps`` and ``guidance`` are by structure, shape
        and texture, and
        kind: which way through the stages; None: as ``pipeline.json`` says.
        mesh: mesh file to texture; None: an object is made.
    """

    kind: str | None = None
    mesh: Path | None = None


def models_of(
    teacher: Any = None,
    student: Any = None,
    steps: Any = None,
    guidance: Any = None,
    sampler: str | None = None,
    kind: str | None = None,
    mesh: Any = None,
) -> Models:
    """``Models`` from what the command line or a Python caller gives; see TRELLIS's ``models_of``.

    Raises:
        FewstepError: numbers that cannot be used, an unknown kind, or "none" beside a student.
    """
    kinds = tuple(KINDS) if mesh is None else TEXTURED
    if kind is not None and kind not in kinds:
        raise unknown("--type" if mesh is None else "--type with --mesh", kind, kinds)
    common = trellis.models_of(teacher, student, sampler=sampler)
    return Models(
        common.teacher,
        common.students,
        by_stage("--steps", steps, int, 1, NAMES),
        by_stage("--guidance", guidance, float, 0.0, NAMES),
        sampler,
        kind=kind,
        mesh=None if mesh is None else Path(mesh),
    )


@dataclass(frozen=True)
class Chosen:
    """The networks of a run and how they are sampled, by stage, with what is to be said about it."""

    pipeline: AnyPipeline
    kind: str
    students: dict[str, Student]
    recipes: dict[str, Recipe]
    warnings: list[str]
    given: Mesh | None = None  # the mesh that gets a texture

    def lines(self) -> list[str]:
        """Which model and students are used, a line each."""
        found = [f"pipeline: {self.pipeline.name}, type {self.kind}"]
        return found + [told(stage, self.students.get(stage), recipe) for stage, recipe in self.recipes.items()]

    def needed(self, *, decode: bool) -> list[str]:
        """Roles of the models that a run loads from the pipeline.

        Args:
            decode: whether meshes are made, and not latents alone.
        """
        way, decoders = KINDS[self.kind], [TEXTURE_DECODER] * decode
        if self.given is not None:
            return [SHAPE_ENCODER, *self._flows(way.texture), *decoders]
        cascade = len(way.shape) > 1  # the coarse shape is decoded to find the cells of the fine one
        shape = [SHAPE_DECODER] * (decode or cascade)
        flows = self._flows(*way.shape, way.texture)
        return [*self._flows(STRUCTURE_FLOW), STRUCTURE_DECODER, *flows, *shape, *decoders]

    def _flows(self, *roles: str) -> list[str]:
        return [role for role in roles if STAGE[role] not in self.students]


def choose(models: Models) -> Chosen:
    """Open the pipeline, find the students and settle each stage's recipe.

    Raises:
        FewstepError: anything that cannot be opened or does not fit.
    """
    name = RELEASED if models.teacher is None else models.teacher
    pipeline: AnyPipeline
    if models.mesh is None:
        pipeline, given = Pipeline.open(name), None
        kind = models.kind or pipeline.spec.default_pipeline_type
        flows = KINDS[kind].flows
    else:
        given, pipeline, kind = given_mesh(models.mesh), TexturingPipeline.open(name), models.kind or TEXTURED[-1]
        flows = (KINDS[kind].texture,)
    students = find_students([name for name in models.students if name != NONE], pipeline, flows)
    stages = {STAGE[role]: STAGE[role] for role in flows}
    recipes, said = recipes_of(pipeline.spec, stages, students, models, group, released=())
    return Chosen(pipeline, kind, students, recipes, said, given)
