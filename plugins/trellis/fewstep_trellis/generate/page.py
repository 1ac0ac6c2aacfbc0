"""What ``fewstep app`` shows of TRELLIS: students to choose from, and objects of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fewstep_shapes3d.app.maker import Choice, Made, Order
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.result import MESH

from fewstep.core.contract import Contract
from fewstep.engine.export import read_info
from fewstep.errors import FewstepError
from fewstep.words import shortened
from fewstep_trellis.generate.api import Generator, Options
from fewstep_trellis.generate.inputs import Job
from fewstep_trellis.generate.models import NONE, STAGE_NAMES, Chosen, choose, models_of
from fewstep_trellis.generate.pictures import opened
from fewstep_trellis.shipped import shipped_students, student_for

TEACHER = "teacher"
FEWEST = 1  # steps of a stage that no student was named for, where a shipped one takes so few
EXAMPLES = ("Bed", "Chair with cushion", "Corner sofa", "Desk", "Cafe table", "Bookcase", "Desk lamp", "Truck")
LONGEST = 60  # characters of a run's name on the page


class TrellisMaker:
    """Makes an order's object; see ``fewstep_shapes3d.app.maker.Maker``.

    Args:
        teacher: pipeline folder or hub name; None: the shipped nano model.
        students: of ``--student``, beside the shipped ones of the nano model.
        options: device, memory, encoder.

    Raises:
        FewstepError: what cannot be opened or does not fit, a pipeline for texts, or a device that is not there.
    """

    stages: Sequence[str] = tuple(STAGE_NAMES.values())

    def __init__(self, teacher: str | None, students: Sequence[str], options: Options) -> None:
        self.teacher = teacher
        shipped = [] if teacher else dict.fromkeys(name for stage in STAGE_NAMES for name in shipped_students(stage))
        self.students = list(dict.fromkeys([*shipped, *students, NONE]))
        chosen = [self._chosen(student, None) for student in self.students]
        if chosen[-1].pipeline.spec.kind != "image":
            raise FewstepError(f"--teacher: {chosen[-1].pipeline.name} is for texts; accepted: a pipeline for pictures")
        self.choices: Sequence[Choice] = [self._choice(*pair) for pair in zip(self.students, chosen, strict=True)]
        self.title = f"TRELLIS: {teacher}" if teacher else "TRELLIS: the nano model that is shipped"
        self.generator = Generator(chosen[-1], options)
        self.examples: Mapping[str, Any] = _examples()

    def _chosen(self, student: str, steps: tuple[int, ...] | None) -> Chosen:
        return choose(models_of(self.teacher, student, steps))

    def _choice(self, student: str, chosen: Chosen) -> Choice:
        steps, words = [], []
        for stage in STAGE_NAMES:
            own, filling = chosen.recipes[stage].steps, None
            if stage in chosen.students:
                contract = chosen.students[stage].contract
                words.append(f"made for {_listed(contract)}" if contract else "")
            elif self.teacher is None and student != NONE and (filling := student_for(stage, FEWEST)):
                info = read_info(filling)
                words.append(f"{_listed(info.contract)}: by {info.method}; the teacher's: {own}")
            else:
                words.append(f"the teacher's: {own}")
            steps.append(FEWEST if filling else own)
        return Choice(TEACHER if student == NONE else shortened(student, LONGEST), tuple(steps), tuple(words))

    def check(self, order: Order) -> None:
        """Raise FewstepError for a picture that nothing can be made of, or steps that do not fit."""
        chosen = self._chosen(self.students[order.choice], order.steps)
        opened(_job(order), order.background, self.generator.options.encoder or chosen.pipeline.spec.encoder)

    def __call__(self, order: Order, tell: Callable[[str], None]) -> Made:
        """Make the object; models stay loaded. Raises FewstepError where nothing can be made of it."""
        chosen, make = self._chosen(self.students[order.choice], order.steps), self.generator
        make.options = replace(make.options, seed=order.seed, background=order.background)
        make.runner.students, make.runner.recipes = chosen.students, chosen.recipes
        make.runner.clock.tell = tell
        (result,) = make(_job(order), [MESH])
        if not result.mesh.success:
            raise FewstepError("the mesh came out without faces; try another seed or more steps")
        with TemporaryDirectory() as folder:
            glb = result.save(Path(folder) / "object.glb").read_bytes()
        return Made(glb, result.seconds, result.counts, chosen.lines()[1:], chosen.warnings)


def _listed(contract: Contract) -> str:
    return ", ".join(map(str, contract.steps))


def _job(order: Order) -> Job:
    return Job(order.name, (order.picture,))


def _examples() -> dict[str, Any]:
    """Pictures of some held-out objects of the shipped set, by name."""
    objects = PreparedSet.load()
    rows = {objects.table[int(row)]["name"]: int(row) for row in reversed(objects.test)}  # of each name the first
    return {name: objects.picture(rows[name]) for name in EXAMPLES}
