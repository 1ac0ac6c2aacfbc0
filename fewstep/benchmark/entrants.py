"""What is measured: the teacher, its undistilled network, and the students.

Each entrant has a model for every stage, sampled as its contract says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fewstep.config.base import validate
from fewstep.config.run import model_of
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance
from fewstep.core.samplers import Sampler
from fewstep.core.suite import Suite
from fewstep.engine.budget import evaluations
from fewstep.engine.export import StudentInfo
from fewstep.errors import FewstepError
from fewstep.plugins.registry import registry

TEACHER, UNDISTILLED = "teacher", "undistilled"
OTHER_NOISE, TRUTH = "teacher, other noise", "truth, decoded"
RESERVED = (TEACHER, UNDISTILLED, OTHER_NOISE, TRUTH)


@dataclass(frozen=True)
class Stage:
    """One stage of the model: its teacher, sampled by Euler with its own guidance, and the suite that decodes."""

    name: str  # for the columns of times; "" if there is only one stage
    teacher: Teacher
    suite: Suite


@dataclass(frozen=True, eq=False)
class Model:
    """A velocity field of one stage. ``network`` is the module inside ``field`` whose evaluations are counted."""

    field: nn.Module
    network: Backbone
    contract: Contract
    info: StudentInfo | None = None  # of students

    @property
    def sampler(self) -> Sampler:
        """The sampler that the contract names."""
        sampler: Sampler = self.contract.load_sampler()
        return sampler


@dataclass(frozen=True, eq=False)
class Entrant:
    """What is sampled: a model for each stage, all in the same number of steps.

    Students of one label are replicates: trainings that differ only in their seed. ``training`` is the number among
    them, None for anything but a student.
    """

    label: str
    method: str
    models: tuple[Model, ...]
    training: int | None = None

    @property
    def infos(self) -> list[StudentInfo]:
        """The ``config.json`` of the student of each stage; empty for anything but a student."""
        return [model.info for model in self.models if model.info is not None]

    @property
    def evaluations(self) -> float | None:
        """Evaluations of all networks in training, a sample each, in units of a forward pass: a backward pass counts 2,
        and so does a forward pass with its tangent."""
        return float(sum(evaluations(info.budget) for info in self.infos)) if self.infos else None

    @property
    def training_seconds(self) -> float | None:
        """Training time, summed over stages."""
        return sum(info.seconds for info in self.infos) if self.infos else None

    @property
    def training_seeds(self) -> list[int | None]:
        """The training seed of each stage's run."""
        return [info.config.get("seed") for info in self.infos]

    @property
    def guidance(self) -> float:
        """The guidance scale at sampling, the largest of all stages."""
        return max(model.contract.guidance for model in self.models)

    @property
    def samplers(self) -> str:
        """The samplers of all stages, each once."""
        return "+".join(dict.fromkeys(model.contract.sampling for model in self.models))

    def made_for(self, steps: int) -> bool:
        """Whether the contracts of all stages name this step count."""
        return all(steps in model.contract.steps for model in self.models)


def student(label: str | None, networks: Iterable[tuple[Backbone, StudentInfo]]) -> Entrant:
    """A student with one network per stage; without a label it is named after its methods."""
    models, methods = [], []
    for network, info in networks:
        guidance = info.contract.guidance
        field: nn.Module = Teacher(network, Guidance(guidance)) if guidance != 1.0 else network.eval()
        models.append(Model(field, network, info.contract, info))
        methods.append(info.method)
    return Entrant(label or "+".join(dict.fromkeys(methods)), methods[0], tuple(models))


def with_samplers(students: Sequence[Entrant], samplers: Sequence[str]) -> list[Entrant]:
    """Each student, followed by copies labelled ``LABEL, SAMPLER`` for those of ``samplers`` that are not its own.

    Raises:
        FewstepError: for a sampler that a student cannot be sampled with.
    """
    entrants = []
    for own in students:
        entrants.append(own)
        seen = {own.samplers}
        for sampler in samplers:
            try:
                models = tuple(replace(model, contract=model.contract.sampled_by(sampler)) for model in own.models)
            except FewstepError as error:
                raise FewstepError(f"--samplers {sampler}: student {own.label!r}: {error}") from None
            other = replace(own, models=models)
            if other.samplers not in seen:
                seen.add(other.samplers)
                entrants.append(replace(other, label=f"{own.label}, {other.samplers}"))
    return entrants


def line_up(
    stages: Sequence[Stage], students: Sequence[Entrant], steps: Sequence[int], teacher_steps: int
) -> list[tuple[Entrant, int]]:
    """Who is sampled in how many steps: the teacher, undistilled at the other ``steps``, the students at ``steps``.

    Raises:
        FewstepError: for a label that is reserved or not printable, and for students of one label that are not
            replicates.
    """
    students = _numbered(students)
    few, models = [n for n in steps if n != teacher_steps], []
    for stage in stages:
        teacher = stage.teacher
        contract = Contract(steps=(teacher_steps, *few), rescale_t=teacher.rescale_t, guidance=teacher.guidance.scale)
        models.append(Model(teacher, teacher.backbone, contract))
    first, undistilled = (Entrant(name, name, tuple(models)) for name in (TEACHER, UNDISTILLED))
    others = [(undistilled, n) for n in few] + [(entrant, n) for entrant in students for n in steps]
    return [(first, teacher_steps), *others]


def _numbered(students: Sequence[Entrant]) -> list[Entrant]:
    """Number the students of each label as its replicates 0, 1, 2, ..."""
    by_label: dict[str, list[Entrant]] = {}
    numbered = []
    for entrant in students:
        if not entrant.label.isprintable():
            raise FewstepError(
                f"--student: label {entrant.label!r}; accepted: letters, digits, signs and spaces on one line"
            )
        others = by_label.setdefault(entrant.label, [])
        unlike = "reserved" if entrant.label in RESERVED else _unlike(others, entrant)
        if unlike:
            accepted = "another label, or as replicates of one label runs that differ in their training seed only"
            raise FewstepError(f"--student: label {entrant.label!r} is taken ({unlike}); accepted: {accepted}")
        others.append(entrant)
        numbered.append(replace(entrant, training=len(others) - 1))
    return numbered


def _unlike(others: Sequence[Entrant], entrant: Entrant) -> str:
    """Why a student is not a further replicate of these; "" if it is."""
    if not others:
        return ""
    if entrant.training_seeds in (other.training_seeds for other in others):
        return f"two students with training seed {', '.join(map(str, entrant.training_seeds))}"
    for first, info in zip(others[0].infos, entrant.infos, strict=True):
        for name in ("method", "contract", "step", "weights"):
            if getattr(first, name) != getattr(info, name):
                return f"{name} is not the same in all"
        one, other = _completed(first), _completed(info)
        for table in ("objective", "backbone", "data"):
            then, now = one.get(table), other.get(table)
            if then != now:
                keys = [key for key in now if then.get(key) != now[key]] if then and now else []
                return f"{', '.join(f'{table}.{key}' for key in keys) or table} is not the same in all"
    return ""


def _completed(info: StudentInfo) -> dict[str, Any]:
    """The run's config, with the defaults of keys that did not exist yet when it was recorded; as recorded, if a plugin
    that it needs is not installed or refuses it."""
    parts = {"objective": info.method, "backbone": info.backbone, "dataset": info.dataset}
    try:
        run = model_of(*(registry().get(kind, name) for kind, name in parts.items()))
        return validate(run, info.config).model_dump(mode="json")
    except FewstepError:
        return info.config
