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
from fewstep_trellis.generate.models import NONE, STAGE_NAMES, choose, models_of
from fewstep_trellis.generate.pictures import opened
from fewstep_trellis.shipped import shipped_students, student_for

TEACHER = "teacher"
FEWEST = 1  # steps of a stage for which no student was named but a shipped one takes this few
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

    system = "TRELLIS"
    names: Mapping[str, str] = STAGE_NAMES  # of stages, for people

    def __init__(self, teacher: str | None, students: Sequence[str], options: Options) -> None:
        self.teacher = teacher
        shipped = [] if teacher else [name for stage in self.names for name in shipped_students(stage)]
        self.students = list(dict.fromkeys([*shipped, *students, NONE]))
        chosen = [self._chosen(student, None) for student in self.students]
        if chosen[-1].pipeline.spec.kind != "image":
            raise FewstepError(f"--teacher: {chosen[-1].pipeline.name} is for texts; accepted: a pipeline for pictures")
        self.title = f"{self.system}: {teacher or 'the nano model that is shipped'}"
        self.stages: Sequence[str] = list(self.names.values())
        self.choices: Sequence[Choice] = [self._choice(*pair) for pair in zip(self.students, chosen, strict=True)]
        self.examples: Mapping[str, Any] = _examples()
        self.generator = self._generator(chosen[-1], options)

    def _chosen(self, student: str, steps: tuple[int, ...] | None) -> Any:
        return choose(models_of(self.teacher, student, steps))

    def _generator(self, chosen: Any, options: Options) -> Any:
        return Generator(chosen, options)

    def _choice(self, student: str, chosen: Any) -> Choice:
        steps, words = [], []
        for stage in self.names:
            own, filling = _of_stage(chosen.recipes, stage).steps, None
            if found := _of_stage(chosen.students, stage):
                words.append(f"made for {_listed(found.contract)}" if found.contract else "")
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


def _of_stage(values: Mapping[str, Any], stage: str) -> Any:
    """The value of a stage, or of a finer one that is sampled alike (TRELLIS.2's shape-1024 for shape)."""
    return next((value for name, value in values.items() if name.partition("-")[0] == stage), None)


def _listed(contract: Contract) -> str:
    return ", ".join(map(str, contract.steps))


def _job(order: Order) -> Job:
    return Job(order.name, (order.picture,))


def _examples() -> dict[str, Any]:
    """Pictures of some held-out objects of the shipped set, by name."""
    objects = PreparedSet.load()
    rows = {objects.table[int(row)]["name"]: int(row) for row in reversed(objects.test)}  # of each name the first
    return {name: objects.picture(rows[name]) for name in EXAMPLES}
