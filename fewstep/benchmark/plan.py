"""What a bench has to sample: all of its cells, or with ``--resume`` those that its ``rows.csv`` lacks."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fewstep.benchmark.cells import Scorer
from fewstep.benchmark.entrants import OTHER_NOISE, TEACHER, TRUTH, Entrant
from fewstep.benchmark.rows import Cell, Row, as_row
from fewstep.errors import FewstepError

RECORD, REFERENCES = "environment.json", (TRUTH, OTHER_NOISE)
Kept = list[tuple[Row, dict[str, str]]]  # rows that were measured before, each with its line of rows.csv


@dataclass(frozen=True)
class Todo:
    """A cell to sample. If it is ``known``, it was measured before, and only its objects are needed."""

    entrant: Entrant
    steps: int
    seed: int
    known: bool = False

    @property
    def cell(self) -> Cell:
        """The cell's key."""
        return self.entrant.label, self.steps, (self.entrant.training, self.seed)


def remaining(
    cells: Sequence[tuple[Entrant, int]], seeds: Sequence[int], scorer: Scorer, kept: Kept
) -> tuple[list[Todo], Kept, bool]:
    """The cells to sample, the earlier rows to keep, and whether nothing has to be measured.

    Measured cells are sampled again if their objects are needed: those of the first seed for the contact sheet, and the
    teacher's for comparison. The references are measured again whenever a cell is added.
    """
    kept = [(row, line) for row, line in kept if _planned(cells, scorer.order, row.cell)]
    have, recorded = {row.cell for row, _ in kept}, scorer.suite.keeps_records
    todos = [Todo(entrant, steps, seed) for seed in seeds for entrant, steps in cells]
    todos = [
        replace(todo, known=todo.cell in have and (not recorded or scorer.cells.path(todo.cell).is_file()))
        for todo in todos
        if _planned(cells, scorer.order, todo.cell)
    ]
    if recorded:  # the teacher's records of all seeds are needed by every other cell
        todos.sort(key=lambda todo: todo.entrant.label != TEACHER)
    whole = all(todo.known for todo in todos) and any(label == TRUTH for label, _, _ in have)
    new = {todo.cell for todo in todos if not todo.known}
    kept = [(row, line) for row, line in kept if row.cell not in new and (whole or row.label not in REFERENCES)]

    def needed(todo: Todo) -> bool:
        teacher, drawn = todo.entrant.label == TEACHER, todo.seed == seeds[0] and not todo.entrant.training
        return not todo.known or drawn or (teacher and not whole)

    return [todo for todo in todos if needed(todo)], kept, whole


def _planned(cells: Sequence[tuple[Entrant, int]], order: Sequence[int], cell: Cell) -> bool:
    """Whether a cell belongs to the bench. Each of several replicates is sampled with the seed of its number, so that
    all methods share the noise of a replicate; anything else with all seeds."""
    label, _, (training, seed) = cell
    if training is None or not any(entrant.label == label and entrant.training for entrant, _ in cells):
        return True
    return seed == order[training % len(order)]


def measured(folder: Path, settings: Mapping[str, Any]) -> tuple[Kept, dict[str, Any]]:
    """The rows of all complete cells of an earlier bench in ``folder``, and the settings of both benches combined.

    The last cell of a bench that was stopped may be incomplete, so it counts only in a bench that has ended; so do the
    references, which come last.

    Args:
        settings: of the new bench, as ``environment.json`` records them.

    Raises:
        FewstepError: for a folder without a bench, a damaged file, or a bench of other settings.
    """
    try:
        old = json.loads((folder / RECORD).read_text(encoding="utf-8-sig"))
        text = (folder / "rows.csv").read_text(encoding="utf-8-sig")
        _check(old, settings)
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)  # without a half-written last line
        kept = [(as_row(line), line) for line in csv.DictReader(lines)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "damaged"
        accepted = "accepted: the folder of a bench that was stopped, or no --resume and another --out"
        raise FewstepError(f"--resume: {str(folder)!r} holds no bench to go on with ({why}); {accepted}") from None
    if "seconds" not in old and kept:
        last = kept[-1][0].cell
        kept = [(row, line) for row, line in kept if row.cell != last and row.label not in REFERENCES]
    both = {name: list(dict.fromkeys((*old[name], *settings[name]))) for name in ("seeds", "steps")}
    students = {_training(student): student for student in settings["students"]}
    others = [student for student in old["students"] if _training(student) not in students]
    return kept, {**settings, **both, "students": [*students.values(), *others]}


def _check(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse changes of anything but seeds, steps and students, which may be added."""
    pairs = [(name, old[name], new[name]) for name in ("backbone", "samples", "teacher")]
    known = {_training(student): student for student in old["students"]}
    pairs += [(f"student {s['label']!r}", known.get(_training(s), s), s) for s in new["students"]]
    for name, before, now in pairs:
        if _settled(before) != _settled(now):
            raise FewstepError(
                f"--resume: {name} differs from what the bench in the folder measured ({_short(before)} then, "
                f"{_short(now)} now); accepted: the same, or another --out"
            )


def _training(student: Mapping[str, Any]) -> tuple[str, int]:
    """Label and number of a replicate."""
    return student["label"], student["training"]


def _settled(record: Any) -> Any:
    """A record with only the first step count of each contract: the teacher's others are those of the bench."""
    if not isinstance(record, dict):
        return record
    if "steps" in record:  # a contract
        return {**record, "steps": record["steps"][:1]}
    return {name: _settled(value) for name, value in record.items()}


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    contract, trained = value["contract"], value.get("step", "no")
    return f"{value['method']}, {trained} iterations, {contract['steps'][0]} steps by {contract['sampler']}"
