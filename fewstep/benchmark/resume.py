"""``--resume``: a bench goes on with the cells that its ``rows.csv`` lacks."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fewstep.benchmark.cells import cell_of
from fewstep.benchmark.entrants import OTHER_NOISE, TRUTH
from fewstep.benchmark.rows import Row
from fewstep.errors import FewstepError

RECORD, REFERENCES = "environment.json", (TRUTH, OTHER_NOISE)
Record = dict[str, str]  # a line of rows.csv
ROW = TypeAdapter(Row)
OPTIONAL = ("seed", "training", "evaluations", "training_seconds")


def as_row(record: Record) -> Row:
    """A line of ``rows.csv`` as a row."""
    values = {field.name: record[field.name] for field in fields(Row)}
    return ROW.validate_python(
        {name: None if text == "" and name in OPTIONAL else text for name, text in values.items()}
    )


def measured(folder: Path, settings: Mapping[str, Any]) -> tuple[list[Record], dict[str, Any]]:
    """The lines of all whole cells of an earlier bench in ``folder``, and the settings of both together.

    The last cell of a bench that was stopped may be torn, so it counts only in one that ended. The references at the
    end are kept in one that ended too.

    Args:
        settings: what the bench is started with, as ``environment.json`` records it.

    Raises:
        FewstepError: for a folder without a bench, a damaged file, or a bench of other settings.
    """
    try:
        old = json.loads((folder / RECORD).read_text(encoding="utf-8-sig"))
        text = (folder / "rows.csv").read_text(encoding="utf-8-sig")
        _check(old, settings)
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)  # the last line of a stopped bench may be half
        records = list(csv.DictReader(lines))
        cells = [cell_of(row) for row in map(as_row, records)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "damaged"
        accepted = "accepted: the folder of a bench that was stopped, or no --resume and another --out"
        raise FewstepError(f"--resume: {str(folder)!r} holds no bench to go on with ({why}); {accepted}") from None
    if "seconds" not in old:
        torn = cells[-1:] + [cell for cell in cells if cell[0] in REFERENCES]
        records = [record for record, cell in zip(records, cells, strict=True) if cell not in torn]
    both = {name: list(dict.fromkeys((*old[name], *settings[name]))) for name in ("seeds", "steps")}
    students = {_training(one): one for one in (*old["students"], *settings["students"])}
    return records, {**settings, **both, "students": list(students.values())}


def _check(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Seeds, steps and students may be added; all else is as it was."""
    pairs = [(name, old[name], new[name]) for name in ("backbone", "samples", "teacher")]
    known = {_training(one): one for one in old["students"]}
    pairs += [(f"student {one['label']!r}", known.get(_training(one), one), one) for one in new["students"]]
    for name, before, now in pairs:
        if _settled(before) != _settled(now):
            raise FewstepError(
                f"--resume: {name} is another one than the bench in the folder has measured ({_short(before)} then, "
                f"{_short(now)} now); accepted: the same, or another --out"
            )


def _training(student: Mapping[str, Any]) -> tuple[str, int]:
    """Label and number of a replicate."""
    return student["label"], student["training"]


def _settled(record: Any) -> Any:
    """An entrant with the first of its contract's steps alone: the teacher's further ones are what is asked for."""
    if not isinstance(record, dict):
        return record
    found = dict(record)
    if "contract" in found:
        found["contract"] = {**found["contract"], "steps": found["contract"]["steps"][:1]}
    if "then" in found:
        found["then"] = _settled(found["then"])
    return found


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    contract, trained = value["contract"], value.get("step", "no")
    return f"{value['method']}, {trained} iterations, {contract['steps'][0]} steps by {contract['sampler']}"
