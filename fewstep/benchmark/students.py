"""Finding the students to measure: shipped ones by method, and folders, with one student for each stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.core.backbone import Backbone
from fewstep.engine.export import StudentInfo, load_student
from fewstep.errors import FewstepError, invalid
from fewstep.plugins.registry import Entry, registry

Student = tuple[str, Backbone, StudentInfo]  # label, network, what its folder says of it
Folders = tuple[str | None, dict[str, Path]]  # label (None: the method's name), folder of each stage


def folder_of(student: Any) -> Path:
    """The folder of a student: a path, or an object with one as its ``folder`` or ``path``.

    Raises:
        FewstepError: for anything else.
    """
    value = getattr(student, "folder", getattr(student, "path", student))
    if not isinstance(value, str | os.PathLike):
        raise invalid("students", student, "a folder, or what fewstep.distill or fewstep.load returned")
    return Path(value)


def find(
    networks: Mapping[str, Entry], methods: Sequence[str], given: Iterable[tuple[str | None, Path]]
) -> list[Folders]:
    """Shipped students of ``methods``, then the ``given`` (label, folder); all shipped ones where neither is named.

    Raises:
        FewstepError: for a method of which a stage ships no student, or a folder without a student of each stage.
    """
    shipped: dict[str, dict[str, Path]] = {stage: network.load().students() for stage, network in networks.items()}
    complete = [name for name in next(iter(shipped.values())) if all(name in found for found in shipped.values())]
    given = list(given)
    names = [registry().get("objective", name).name for name in methods] if methods or given else complete
    for name in names:
        if name not in complete:
            lacking = next(network.name for stage, network in networks.items() if name not in shipped[stage])
            raise FewstepError(
                f"--methods: backbone {lacking!r} ships no student of method {name!r}: accepted are "
                f"{', '.join(complete) or 'none'}; make one with fewstep distill and give it with --student"
            )
    found: list[Folders] = [(None, {stage: shipped[stage][name] for stage in networks}) for name in names]
    return found + [(label, _by_stage(path, list(networks))) for label, path in given]


def _by_stage(path: Path, stages: list[str]) -> dict[str, Path]:
    """``path`` itself, or its subfolder of the stage's name."""
    if len(stages) == 1:
        return {name: path / name if name and (path / name).is_dir() else path for name in stages}
    missing = [name for name in stages if not (path / name).is_dir()]
    if missing:
        accepted = f"a folder with a student in each of {', '.join(stages)}, as fewstep distill --stage both writes"
        raise FewstepError(f"--student {str(path)!r}: holds no {', '.join(missing)}; accepted: {accepted}")
    return {name: path / name for name in stages}


def load(folders: Iterable[Folders], networks: Mapping[str, Entry]) -> dict[str, list[Student]]:
    """The students of each stage; one without a label is named by its methods.

    Raises:
        FewstepError: for a folder that holds no student, or one of another backbone.
    """
    students: dict[str, list[Student]] = {stage: [] for stage in networks}
    for label, paths in folders:
        loaded = {stage: load_student(path) for stage, path in paths.items()}
        methods = "+".join(dict.fromkeys(info.method for _, info in loaded.values()))
        for stage, (student, info) in loaded.items():
            if info.backbone != networks[stage].name:
                raise FewstepError(
                    f"--student {str(paths[stage])!r}: a student of backbone {info.backbone!r}; accepted: one of "
                    f"{networks[stage].name!r}"
                )
            students[stage].append((label or methods, student, info))
    return students
