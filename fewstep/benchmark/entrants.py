"""What is measured: the teacher, its undistilled network, and the students, each sampled as its contract says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import nn

from fewstep.core.backbone import Backbone, Guidance, Teacher
from fewstep.core.contract import Contract
from fewstep.core.samplers import Sampler
from fewstep.core.suite import Suite
from fewstep.errors import FewstepError
from fewstep.plugins.registry import registry

TEACHER, UNDISTILLED = "teacher", "undistilled"
OTHER_NOISE, TRUTH = "teacher, other noise", "truth, decoded"
RESERVED = (TEACHER, UNDISTILLED, OTHER_NOISE, TRUTH)


class Info(Protocol):
    """What the bench needs of a student's ``StudentInfo``."""

    @property
    def contract(self) -> Contract: ...
    @property
    def method(self) -> str: ...


@dataclass(frozen=True)
class Stage:
    """One stage of what is measured: its networks, and the suite that decodes its samples.

    Args:
        name: for the columns of times; "" where there is one stage.
        teacher: sampled by Euler at its own guidance.
        suite: decodes and measures.
        students: (label, network, info); a label of None is the method's name.
        rescale_t: warp of the teacher's time grid.
    """

    name: str
    teacher: Teacher
    suite: Suite
    students: Sequence[tuple[str | None, Backbone, Info]]
    rescale_t: float = 1.0


@dataclass(frozen=True)
class Entrant:
    """A velocity field and how it is sampled: one line of the chart.

    ``network`` is the module inside ``field`` whose evaluations count; ``steps`` are the step counts to run; ``info``
    is what a student's folder says of it; ``then`` samples the next stage, in as many steps.
    """

    label: str
    method: str
    field: nn.Module
    network: Backbone
    contract: Contract
    steps: tuple[int, ...]
    sampler: Sampler = field(repr=False)
    info: Info | None = field(default=None, repr=False)
    then: Entrant | None = None

    @property
    def chain(self) -> list[Entrant]:
        """The entrants of all stages in order, this one first."""
        return [self, *(self.then.chain if self.then is not None else ())]

    @property
    def guidance(self) -> float:
        """The scale at sampling, the largest of all stages."""
        return max(one.contract.guidance for one in self.chain)

    @property
    def samplers(self) -> str:
        """The samplers of all stages, each once."""
        return "+".join(dict.fromkeys(one.contract.sampler for one in self.chain))

    @property
    def cost(self) -> int:
        """About how many evaluations all its step counts take, for the progress display."""
        return sum(sum(one.steps) * (1 if one.contract.guidance == 1.0 else 2) for one in self.chain)

    def made_for(self, steps: int) -> bool:
        """Whether the contracts of all stages name this step count."""
        return all(steps in one.contract.steps for one in self.chain)


def line_up(stages: Sequence[Stage], steps: Sequence[int], teacher_steps: int) -> list[Entrant]:
    """The entrants of all stages: those of the first, each with that of its label in the next stage as ``then``.

    Raises:
        FewstepError: for stages with other students, and whatever ``entrants`` raises.
    """
    *earlier, found = [entrants(stage, steps, teacher_steps) for stage in stages]
    for before in reversed(earlier):
        labels = [[one.label for one in part] for part in (before, found)]
        if labels[0] != labels[1]:
            raise FewstepError(f"stages: got the students {labels[0]} and {labels[1]}; accepted: the same in each")
        found = [replace(one, then=later) for one, later in zip(before, found, strict=True)]
    return found


def entrants(stage: Stage, steps: Sequence[int], teacher_steps: int) -> list[Entrant]:
    """The teacher at ``teacher_steps``, undistilled at the other ``steps``, then the students at ``steps``.

    Raises:
        FewstepError: for a label twice or reserved, or a contract whose sampler is not registered.
    """
    teacher, students = stage.teacher, stage.students
    few = tuple(n for n in steps if n != teacher_steps)
    contract = Contract(steps=(teacher_steps, *few), rescale_t=stage.rescale_t, guidance=teacher.guidance.scale)
    euler = _sampler("euler")
    found = [Entrant(TEACHER, TEACHER, teacher, teacher.backbone, contract, (teacher_steps,), euler)]
    if few:
        found.append(Entrant(UNDISTILLED, UNDISTILLED, teacher, teacher.backbone, contract, few, euler))
    for label, network, info in students:
        found.append(_student(label or info.method, network, info, tuple(steps)))
    labels = [one.label for one in found]
    for one in found[len(found) - len(students) :]:
        if one.label in RESERVED or labels.count(one.label) > 1:
            raise FewstepError(
                f"--student: label {one.label!r} is taken; accepted: LABEL=FOLDER with a label of its own for each"
            )
    return found


def _student(label: str, network: Backbone, info: Info, steps: tuple[int, ...]) -> Entrant:
    contract = info.contract
    guided = contract.guidance != 1.0
    module: nn.Module = Teacher(network, Guidance(contract.guidance)) if guided else network.eval()
    return Entrant(label, info.method, module, network, contract, steps, _sampler(contract.sampler), info)


def _sampler(name: str) -> Sampler:
    sampler: Sampler = registry().get("sampler", name).load()
    return sampler
