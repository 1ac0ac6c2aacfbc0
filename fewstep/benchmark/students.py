"""Students to measure, found by method, by folder or by a pattern of folders."""

from __future__ import annotations

import filecmp
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from glob import escape, glob, has_magic
from pathlib import Path
from typing import Any, get_args

from fewstep.benchmark.config import BenchConfig
from fewstep.benchmark.entrants import Entrant, student
from fewstep.core.backbone import Backbone
from fewstep.engine.export import StudentInfo, load_student
from fewstep.engine.hub import REPOSITORY, fetched
from fewstep.errors import FewstepError, invalid
from fewstep.plugins.registry import Entry, registry

NAMED = 5  # labels in a warning


def load_students(
    networks: Mapping[str, Entry], methods: Sequence[str], given: Iterable[tuple[str | None, Any]]
) -> list[Entrant]:
    """Shipped students of ``methods``, then the ``given`` ones; all shipped students if both are empty.

    Args:
        networks: the registered backbone of each stage.
        given: (label, student), as ``fewstep.bench`` takes them. A label of None stands for the method's name; a list
            or a pattern (``runs/mine-*``) holds replicates.

    Raises:
        FewstepError: for a method whose student is not shipped for every stage, a folder without a student of each
            stage, or a student of another backbone.
    """
    named = [(label, _folders(part, list(networks))) for label, several in given for part in _each(several)]
    shipped = [(None, folders) for folders in _shipped(networks, methods)] if methods or not named else []
    return [
        student(label, [_load(folders[stage], network) for stage, network in networks.items()])
        for label, folders in [*shipped, *named]
    ]


def warn_of_other_teachers(students: Iterable[Entrant], configs: Mapping[str, BenchConfig]) -> None:
    """Warn of labels whose runs had another teacher or decoder than the bench: they would be compared with a teacher
    that they were not distilled from. What is not on this machine is not compared.

    Args:
        configs: of the bench, for each stage.
    """
    others: dict[str, list[str]] = {}
    for entrant in students:
        for (stage, config), info in zip(configs.items(), entrant.infos, strict=True):
            run, prefix = info.config.get("backbone", {}), f"{stage}." if len(configs) > 1 else ""
            for key, field in type(config.backbone).model_fields.items():
                is_path = Path in (field.annotation, *get_args(field.annotation))
                if is_path and _other(run.get(key), getattr(config.backbone, key)):
                    others.setdefault(entrant.label, []).append(f"{prefix}backbone.{key}={run[key]}")
    together: dict[str, list[str]] = {}
    for label, keys in others.items():
        together.setdefault(" ".join(dict.fromkeys(keys)), []).append(label)
    for said, labels in together.items():
        more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
        warnings.warn(
            f"distilled with other files than the bench has: {', '.join(map(repr, labels[:NAMED]))}{more}; to compare "
            f"with their own teacher, give the bench {said}",
            stacklevel=3,
        )


def _other(recorded: Any, own: Path | str | None) -> bool:
    """Whether a run's recorded path (or name) is another one than the bench's, in a folder of this machine, and what is
    there differs: the files of another checkout are the same."""
    if not isinstance(recorded, str) or not os.path.isdir(os.path.dirname(recorded) or "."):
        return False
    if own is None:
        return True
    if os.path.realpath(recorded) == os.path.realpath(own):
        return False
    first, second = _files(recorded), _files(own)
    same = first.keys() == second.keys() and all(filecmp.cmp(first[end], second[end], shallow=False) for end in first)
    return not (first and same)


def _files(path: Path | str) -> dict[str, Path]:
    """The files that a config names with ``path``, by the rest of their names: all in a folder, or those beside each
    other with other extensions (``ss_flow.json``, ``ss_flow.safetensors``)."""
    path = Path(path)
    if path.is_dir():
        return {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    names = {file.name.removeprefix(path.name): file for file in path.parent.glob(f"{escape(path.name)}*")}
    return {end: file for end, file in names.items() if end[:1] in ("", ".") and file.is_file()}


def _shipped(networks: Mapping[str, Entry], methods: Sequence[str]) -> list[dict[str, Path]]:
    """The folders by stage of the shipped students of ``methods``; without any, of all that every stage ships."""
    shipped: dict[str, dict[str, Path]] = {stage: network.load().students() for stage, network in networks.items()}
    complete = [name for name in next(iter(shipped.values())) if all(name in folders for folders in shipped.values())]
    names = [registry().get("objective", name).name for name in methods] or complete
    for name in names:
        if name not in complete:
            lacking = next(network.name for stage, network in networks.items() if name not in shipped[stage])
            raise FewstepError(
                f"--methods: backbone {lacking!r} ships no student of method {name!r}: accepted are "
                f"{', '.join(complete) or 'none'}; make one with fewstep distill and give it with --student"
            )
    return [{stage: shipped[stage][name] for stage in networks} for name in names]


def _each(student: Any) -> list[Any]:
    """The replicates of a list or of a pattern (unless that is itself a folder); anything else gives a list of one."""
    if isinstance(student, list | tuple):
        return [replicate for part in student for replicate in _each(part)]
    if not isinstance(student, str | os.PathLike) or Path(student).exists() or not has_magic(str(student)):
        return [student]
    folders = sorted(path for path in glob(str(student)) if os.path.isdir(path))
    if not folders:
        accepted = "a folder, or a pattern that matches folders"
        raise FewstepError(f"--student {str(student)!r}: matches no folder; accepted: {accepted}")
    return list(folders)


def _folders(student: Any, stages: list[str]) -> dict[str, Path]:
    """A student's folder for each stage: its subfolder of that name, or with one stage also the folder itself."""
    value = getattr(student, "folder", student)
    if not isinstance(value, str | os.PathLike):
        raise invalid("students", student, "a folder, or what fewstep.distill or fewstep.load returned")
    path = Path(value)
    if not path.exists() and REPOSITORY.fullmatch(str(value)):
        path = fetched(str(value), "--student")
    missing = [name for name in stages if not name or not (path / name).is_dir()]
    if missing and len(stages) == 1:
        return {stages[0]: path}
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
