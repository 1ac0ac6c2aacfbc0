"""What is measured: the teacher, its undistilled network, and the students.

Each entrant has a model for every stage, sampled as its contract says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance
from fewstep.core.samplers import Sampler
from fewstep.core.suite import Suite
from fewstep.engine.export import StudentInfo
from fewstep.errors import FewstepError

TEACHER, UNDISTILLED = "teacher", "undistilled"
OTHER_NOISE, TRUTH = "teacher, other noise", "truth, decoded"
RESERVED = (TEACHER, UNDISTILLED, OTHER_NOISE, TRUTH)


@dataclass(frozen=True)
class Stage:
    """One stage of what is measured: a teacher, sampled by Euler at its own guidance, and the suite that decodes."""

    name: str  # for the columns of times; "" where there is one stage
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

    Students of one label are replicates: trainings that differ in their seed only. ``training`` is the number among
    them, None for what is no student.
    """

    label: str
    method: str
    models: tuple[Model, ...]
    training: int | None = None

    @property
    def infos(self) -> list[StudentInfo]:
        """What is known of the student of each stage; of anything else nothing."""
        return [model.info for model in self.models if model.info is not None]

    @property
    def evaluations(self) -> float | None:
        """Of all networks while the student was trained: forward, tangent and backward passes of a sample each."""
        counts = [sum(by_kind.values()) for info in self.infos for by_kind in info.budget.values()]
        return float(sum(counts)) if self.infos else None

    @property
    def training_seconds(self) -> float | None:
        """Of training the student, all stages together."""
        return sum(info.seconds for info in self.infos) if self.infos else None

    @property
    def training_seeds(self) -> list[int | None]:
        """Of each stage's run."""
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
    """A student of one network a stage; without a label it is named by its methods."""
    models, methods = [], []
    for network, info in networks:
        guidance = info.contract.guidance
        field: nn.Module = Teacher(network, Guidance(guidance)) if guidance != 1.0 else network.eval()
        models.append(Model(field, network, info.contract, info))
        methods.append(info.method)
    return Entrant(label or "+".join(dict.fromkeys(methods)), methods[0], tuple(models))


def with_samplers(students: Sequence[Entrant], samplers: Sequence[str]) -> list[Entrant]:
    """Each student, and after it the same under the label ``LABEL, SAMPLER`` for every other one of ``samplers``.

    Raises:
        FewstepError: for a sampler that a student cannot be sampled with.
    """
    found = []
    for one in students:
        found.append(one)
        seen = {one.samplers}
        for sampler in samplers:
            try:
                models = tuple(replace(model, contract=model.contract.sampled_by(sampler)) for model in one.models)
            except FewstepError as error:
                raise FewstepError(f"--samplers {sampler}: student {one.label!r}: {error}") from None
            other = replace(one, models=models)
            if other.samplers not in seen:
                seen.add(other.samplers)
                found.append(replace(other, label=f"{one.label}, {other.samplers}"))
    return found


def line_up(
    stages: Sequence[Stage], students: Sequence[Entrant], steps: Sequence[int], teacher_steps: int
) -> list[tuple[Entrant, int]]:
    """Who is sampled in how many steps: the teacher, undistilled at the other ``steps``, the students at ``steps``.

    Raises:
        FewstepError: for a label that is reserved or holds what cannot be printed, and for students of one label that
            are no replicates.
    """
    students = _numbered(students)
    few, models = [n for n in steps if n != teacher_steps], []
    for stage in stages:
        teacher = stage.teacher
        contract = Contract(steps=(teacher_steps, *few), rescale_t=teacher.rescale_t, guidance=teacher.guidance.scale)
        models.append(Model(teacher, teacher.backbone, contract))
    first, undistilled = (Entrant(name, name, tuple(models)) for name in (TEACHER, UNDISTILLED))
    others = [(undistilled, n) for n in few] + [(one, n) for one in students for n in steps]
    return [(first, teacher_steps), *others]


def _numbered(students: Sequence[Entrant]) -> list[Entrant]:
    """Students of one label become its replicates 0, 1, 2, ..."""
    found: dict[str, list[Entrant]] = {}
    numbered = []
    for one in students:
        if not one.label.isprintable():
            raise FewstepError(
                f"--student: label {one.label!r}; accepted: letters, digits, signs and spaces on one line"
            )
        others = found.setdefault(one.label, [])
        unlike = "reserved" if one.label in RESERVED else _unlike(others, one)
        if unlike:
            accepted = "another label, or as replicates of one label runs that differ in their training seed only"
            raise FewstepError(f"--student: label {one.label!r} is taken ({unlike}); accepted: {accepted}")
        others.append(one)
        numbered.append(replace(one, training=len(others) - 1))
    return numbered


def _unlike(others: Sequence[Entrant], one: Entrant) -> str:
    """Why a student is no further replicate of these; "" where it is one."""
    if not others:
        return ""
    if one.training_seeds in (other.training_seeds for other in others):
        return f"two students with training seed {', '.join(map(str, one.training_seeds))}"
    for first, info in zip(others[0].infos, one.infos, strict=True):
        for name in ("method", "contract", "step", "weights"):
            if getattr(first, name) != getattr(info, name):
                return f"{name} is not the same in all"
        for table in ("objective", "backbone", "data"):
            then, now = first.config.get(table), info.config.get(table)
            if then != now:
                keys = [key for key in now if then.get(key) != now[key]] if then and now else []
                return f"{', '.join(f'{table}.{key}' for key in keys) or table} is not the same in all"
    return ""
