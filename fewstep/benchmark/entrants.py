"""What is measured: the teacher, its undistilled network, and the students, each sampled as its contract says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fewstep.core.backbone import Backbone, Guidance, Teacher
from fewstep.core.contract import Contract
from fewstep.core.samplers import Sampler
from fewstep.core.suite import Suite
from fewstep.engine.export import StudentInfo
from fewstep.errors import FewstepError
from fewstep.plugins.registry import registry

TEACHER, UNDISTILLED = "teacher", "undistilled"
OTHER_NOISE, TRUTH = "teacher, other noise", "truth, decoded"
RESERVED = (TEACHER, UNDISTILLED, OTHER_NOISE, TRUTH)


@dataclass(frozen=True)
class Stage:
    """One stage of what is measured: its teacher, and the suite that decodes its samples.

    Args:
        name: for the columns of times; "" where there is one stage.
        teacher: sampled by Euler at its own guidance.
        suite: decodes and measures.
        rescale_t: warp of the teacher's time grid.
    """

    name: str
    teacher: Teacher
    suite: Suite
    rescale_t: float = 1.0


@dataclass(frozen=True, eq=False)
class Model:
    """A velocity field of one stage and how it is sampled.

    ``network`` is the module inside ``field`` whose evaluations count; ``info`` is what a student's folder says of it.
    """

    field: nn.Module
    network: Backbone
    contract: Contract
    sampler: Sampler
    info: StudentInfo | None = None


@dataclass(frozen=True, eq=False)
class Entrant:
    """One line of the chart: a model for each stage, all sampled in the same number of steps."""

    label: str
    method: str
    models: tuple[Model, ...]

    @property
    def guidance(self) -> float:
        """The guidance scale at sampling, the largest of all stages."""
        return max(model.contract.guidance for model in self.models)

    @property
    def samplers(self) -> str:
        """The samplers of all stages, each once."""
        return "+".join(dict.fromkeys(model.contract.sampler for model in self.models))

    def made_for(self, steps: int) -> bool:
        """Whether the contracts of all stages name this step count."""
        return all(steps in model.contract.steps for model in self.models)


def student(label: str | None, networks: Sequence[tuple[Backbone, StudentInfo]]) -> Entrant:
    """A student of one network a stage; without a label it is named by its methods.

    Raises:
        FewstepError: for a contract whose sampler is not registered.
    """
    models = []
    for network, info in networks:
        guidance = info.contract.guidance
        field: nn.Module = Teacher(network, Guidance(guidance)) if guidance != 1.0 else network.eval()
        models.append(Model(field, network, info.contract, _sampler(info.contract.sampler), info))
    methods = list(dict.fromkeys(info.method for _, info in networks))
    return Entrant(label or "+".join(methods), methods[0], tuple(models))


def line_up(
    stages: Sequence[Stage], students: Sequence[Entrant], steps: Sequence[int], teacher_steps: int
) -> list[tuple[Entrant, int]]:
    """Who is sampled in how many steps: the teacher, undistilled at the other ``steps``, the students at ``steps``.

    Raises:
        FewstepError: for a label twice or reserved.
    """
    labels = [one.label for one in students]
    for label in labels:
        if label in RESERVED or labels.count(label) > 1:
            raise FewstepError(
                f"--student: label {label!r} is taken; accepted: LABEL=FOLDER with a label of its own for each"
            )
    few, models = [n for n in steps if n != teacher_steps], []
    for stage in stages:
        teacher = stage.teacher
        contract = Contract(steps=(teacher_steps, *few), rescale_t=stage.rescale_t, guidance=teacher.guidance.scale)
        models.append(Model(teacher, teacher.backbone, contract, _sampler(contract.sampler)))
    teacher_entrant, undistilled = (Entrant(name, name, tuple(models)) for name in (TEACHER, UNDISTILLED))
    return [
        (teacher_entrant, teacher_steps),
        *((undistilled, n) for n in few),
        *((one, n) for one in students for n in steps),
    ]


def _sampler(name: str) -> Sampler:
    sampler: Sampler = registry().get("sampler", name).load()
    return sampler
