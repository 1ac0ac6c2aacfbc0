"""Who is measured: the teacher, its network undistilled, and the students, each by its own sampling contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from fewstep.backbone import Backbone, Guidance, Teacher
from fewstep.contract import Contract
from fewstep.errors import FewstepError
from fewstep.registry import registry
from fewstep.sampler import Sampler

TEACHER, UNDISTILLED = "teacher", "undistilled"
OTHER_NOISE, TRUTH = "teacher, other noise", "truth, decoded"
RESERVED = (TEACHER, UNDISTILLED, OTHER_NOISE, TRUTH)


class Made(Protocol):
    """What the bench reads of a student's ``StudentInfo``."""

    @property
    def contract(self) -> Contract: ...
    @property
    def method(self) -> str: ...


@dataclass(frozen=True)
class Entrant:
    """One line of the chart: a field, and how it is sampled.

    ``network`` is the module inside ``field`` whose evaluations count; ``steps`` are the step counts to run.
    """

    label: str
    method: str
    field: nn.Module
    network: Backbone
    contract: Contract
    steps: tuple[int, ...]
    sampler: Sampler = field(repr=False)

    @property
    def cost(self) -> int:
        """About how many evaluations all its step counts take, for the progress display."""
        return sum(self.steps) * (1 if self.contract.guidance == 1.0 else 2)

    def made_for(self, steps: int) -> bool:
        """Whether the contract names this step count."""
        return steps in self.contract.steps


def entrants(
    teacher: Teacher,
    students: Sequence[tuple[str | None, Backbone, Made]],
    steps: Sequence[int],
    teacher_steps: int,
    rescale_t: float,
) -> list[Entrant]:
    """The teacher at ``teacher_steps``, undistilled at ``steps`` (without ``teacher_steps``), then the students.

    Raises:
        FewstepError: for a label twice or reserved, or a contract whose sampler is not registered.
    """
    few = tuple(n for n in steps if n != teacher_steps)
    contract = Contract(steps=(teacher_steps, *few), rescale_t=rescale_t, guidance=teacher.guidance.scale)
    euler = _sampler("euler")
    found = [Entrant(TEACHER, TEACHER, teacher, teacher.backbone, contract, (teacher_steps,), euler)]
    if few:
        found.append(Entrant(UNDISTILLED, UNDISTILLED, teacher, teacher.backbone, contract, few, euler))
    for label, network, made in students:
        found.append(_student(label or made.method, network, made, tuple(steps)))
    labels = [one.label for one in found]
    for one in found[len(found) - len(students) :]:
        if one.label in RESERVED or labels.count(one.label) > 1:
            raise FewstepError(
                f"--student: label {one.label!r} is taken; accepted: LABEL=FOLDER with a label of its own for each"
            )
    return found


def students_of(found: Sequence[Entrant]) -> list[Entrant]:
    """Those that are neither the teacher nor undistilled."""
    return [one for one in found if one.label not in RESERVED]


def _student(label: str, network: Backbone, made: Made, steps: tuple[int, ...]) -> Entrant:
    contract = made.contract
    guided = contract.guidance != 1.0
    module: nn.Module = Teacher(network, Guidance(contract.guidance)) if guided else network.eval()
    return Entrant(label, made.method, module, network, contract, steps, _sampler(contract.sampler))


def _sampler(name: str) -> Sampler:
    sampler: Sampler = registry().get("sampler", name).load()
    return sampler
