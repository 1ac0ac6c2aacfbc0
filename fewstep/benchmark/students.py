"""Finding the students to measure: shipped ones by method, and folders, with one student for each stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.benchmark.entrants import Entrant, student
from fewstep.core.backbone import Backbone
from fewstep.engine.export import StudentInfo, load_student
from fewstep.errors import FewstepError, invalid
from fewstep.plugins.registry import Entry, registry


def load_students(
    networks: Mapping[str, Entry], methods: Sequence[str], given: Iterable[tuple[str | None, Any]]
) -> list[Entrant]:
    """Shipped students of ``methods``, then the ``given`` ones; all shipped ones where neither is named.

    Args:
        networks: the registered backbone of each stage.
        given: (label, student): a folder, or an object with one as its ``folder``. A label of None is the method's
            name.

    Raises:
        FewstepError: for a method of which a stage ships no student, a folder without a student of each stage, or a
            student of another backbone.
    """
    given = [(label, _by_stage(_folder(one), list(networks))) for label, one in given]
    shipped = _shipped(networks, methods, every=not methods and not given)
    return [
        student(label, [_load(folders[stage], network) for stage, network in networks.items()])
        for label, folders in [*((None, folders) for folders in shipped), *given]
    ]


def _shipped(networks: Mapping[str, Entry], methods: Sequence[str], every: bool) -> list[dict[str, Path]]:
    """The folders by stage of the shipped students of ``methods``, or of every method that all stages ship."""
    shipped: dict[str, dict[str, Path]] = {stage: network.load().students() for stage, network in networks.items()}
    complete = [name for name in next(iter(shipped.values())) if all(name in found for found in shipped.values())]
    names = complete if every else [registry().get("objective", name).name for name in methods]
    for name in names:
        if name not in complete:
            lacking = next(network.name for stage, network in networks.items() if name not in shipped[stage])
            raise FewstepError(
                f"--methods: backbone {lacking!r} ships no student of method {name!r}: accepted are "
                f"{', '.join(complete) or 'none'}; make one with fewstep distill and give it with --student"
            )
    return [{stage: shipped[stage][name] for stage in networks} for name in names]


def _folder(student: Any) -> Path:
    value = getattr(student, "folder", student)
    if not isinstance(value, str | os.PathLike):
        raise invalid("students", student, "a folder, or what fewstep.distill or fewstep.load returned")
    return Path(value)


def _by_stage(path: Path, stages: list[str]) -> dict[str, Path]:
    """``path`` itself, or its subfolder of the stage's name."""
    if len(stages) == 1:
        return {name: path / name if name and (path / name).is_dir() else path for name in stages}
    missing = [name for name in stages if not (path / name).is_dir()]
    if missing:
        accepted = f"a folder with a student in each of {', '.join(stages)}, as fewstep distill --stage both writes"
        raise FewstepError(f"--student {str(path)!r}: holds no {', '.join(missing)}; accepted: {accepted}")
    return {name: path / name for name in stages}


def _load(folder: Path, network: Entry) -> tuple[Backbone, StudentInfo]:
    student, info = load_student(folder)
    if info.backbone != network.name:
        raise FewstepError(
            f"--student {str(folder)!r}: a student of backbone {info.backbone!r}; accepted: one of {network.name!r}"
        )
    return student, info
