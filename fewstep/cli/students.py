"""Which students ``fewstep bench`` measures: shipped ones, folders, and folders with one student of each stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry, registry

if TYPE_CHECKING:
    from fewstep.core.backbone import Backbone
    from fewstep.engine.export import StudentInfo

    Student = tuple[str | None, Backbone, StudentInfo]

Chosen = tuple[str | None, dict[str, Path]]  # label, folders by stage


def choose(running: Mapping[str, Entry], methods: list[str], students: list[str]) -> list[Chosen]:
    """The folders to measure: shipped ones by method, then those given. Without either, all that are shipped.

    Raises:
        FewstepError: for a method of which a stage ships no student, or a folder without one of each stage.
    """
    shipped: dict[str, dict[str, Path]] = {name: network.load().students() for name, network in running.items()}
    everywhere = [name for name in next(iter(shipped.values())) if all(name in found for found in shipped.values())]
    if not methods and not students:
        methods = everywhere
    main = [registry().get("objective", name).name for name in methods]
    for name in main:
        if name not in everywhere:
            lacking = next(network.name for stage, network in running.items() if name not in shipped[stage])
            raise FewstepError(
                f"--methods: backbone {lacking!r} ships no student of method {name!r}: accepted are "
                f"{', '.join(everywhere) or 'none'}; make one with fewstep distill and give it with --student"
            )
    found: list[Chosen] = [(None, {stage: shipped[stage][name] for stage in running}) for name in main]
    return found + [(label, _by_stage(path, list(running))) for label, path in map(labelled, students)]


def _by_stage(path: Path, running: list[str]) -> dict[str, Path]:
    """A student's folder for each stage: ``path`` itself, or its folder of the stage's name."""
    if len(running) == 1:
        return {name: path / name if name and (path / name).is_dir() else path for name in running}
    missing = [name for name in running if not (path / name).is_dir()]
    if missing:
        accepted = f"a folder with a student in each of {', '.join(running)}, as fewstep distill --stage both writes"
        raise FewstepError(f"--student {str(path)!r}: holds no {', '.join(missing)}; accepted: {accepted}")
    return {name: path / name for name in running}


def labelled(text: str) -> tuple[str | None, Path]:
    """``LABEL=PATH`` or ``PATH``; a path that exists as it stands is a path."""
    label, sep, path = text.partition("=")
    if not sep or Path(text).exists():
        return None, Path(text)
    if not label.strip() or not path.strip():
        raise FewstepError(f"--student {text!r}: accepted is PATH or LABEL=PATH")
    return label.strip(), Path(path.strip())


def load(folders: list[Chosen], running: Mapping[str, Entry]) -> dict[str, list[Student]]:
    """The students by stage; one without a label gets its methods' names.

    Raises:
        FewstepError: for a folder that is no student's, or a student of another backbone.
    """
    from fewstep.engine.export import load_student

    students: dict[str, list[Student]] = {name: [] for name in running}
    for label, paths in folders:
        loaded = {name: load_student(path) for name, path in paths.items()}
        methods = "+".join(dict.fromkeys(info.method for _, info in loaded.values()))
        for name, (student, info) in loaded.items():
            if info.backbone != running[name].name:
                raise FewstepError(
                    f"--student {str(paths[name])!r}: a student of backbone {info.backbone!r}; accepted: one of "
                    f"{running[name].name!r}"
                )
            students[name].append((label or methods, student, info))
    return students
