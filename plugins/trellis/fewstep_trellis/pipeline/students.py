"""Students in place of a pipeline's flows: what ``--student`` may name, and which stage it is for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from fewstep.core.contract import Contract
from fewstep.engine.export import INFO, load_student, read_info
from fewstep.engine.hub import REPOSITORY, fetched
from fewstep.errors import FewstepError, unknown
from fewstep.plugins.registry import registry
from fewstep_trellis.checkpoint import read_config
from fewstep_trellis.flow import Flow, load_as
from fewstep_trellis.models import MODELS
from fewstep_trellis.normalisation import PIPELINE
from fewstep_trellis.pipeline.decoders import compare_decoders
from fewstep_trellis.pipeline.loading import CLASSES, FLOWS, Pipeline
from fewstep_trellis.pipeline.released import load_released, stage_of_file
from fewstep_trellis.pipeline.source import Absent, Repository
from fewstep_trellis.pipeline.spec import STAGES
from fewstep_trellis.shipped import shipped_students
from fewstep_trellis.weightfiles import INDEX, SUFFIXES, split_key, stem_of, tensor_file

SHARED = ("resolution", "in_channels", "out_channels", "cond_channels")  # what a stage's networks have in common
ACCEPTED = (
    "a folder of fewstep distill (or one with ss/ and slat/ inside), a checkpoint pair (json + safetensors), a weights "
    "file (FILE:KEY: one network of several), owner/repository or owner/repository/path/of/a/file on the hub, or a "
    "shipped student's name"
)


@dataclass(frozen=True)
class Student:
    """A network for one stage; its weights are read when ``load`` is called.

    Args:
        stage: "ss" or "slat".
        path: where it comes from.
        label: its method, or what kind of file it is.
        contract: how it wants to be sampled; None where the file does not say.
    """

    stage: str
    path: Path
    label: str
    contract: Contract | None
    load: Callable[[], Flow]


def find_students(names: Iterable[str], pipeline: Pipeline) -> dict[str, Student]:
    """The students that ``--student`` names, by stage; no weights are kept in memory.

    Raises:
        FewstepError: for what is not a student, two students of a stage, or one that does not fit the pipeline.
    """
    return one_each((name, student) for name in names for student in _named(name, pipeline))


def one_each(named: Iterable[tuple[str, Student]]) -> dict[str, Student]:
    """Students by stage, from pairs (name that the user gave, student). Raises FewstepError for two of a stage."""
    found: dict[str, Student] = {}
    for name, student in named:
        if student.stage in found:
            raise FewstepError(
                f"--student {name!r}: stage {student.stage!r} has {str(found[student.stage].path)!r} already; "
                "accepted: one student for each stage"
            )
        found[student.stage] = student
    return found


def _named(name: str, pipeline: Pipeline) -> list[Student]:
    path, shipped = Path(name), shipped_by_name()
    if os.path.isdir(path):  # unlike the methods of Path, for any text
        return _in_folder(path, pipeline)
    if os.path.isfile(tensor_file(split_key(path)[0])):
        return [_of_file(path, pipeline)]
    if name in shipped:
        return [_of_folder(folder, pipeline) for folder in shipped[name].values()]
    if REPOSITORY.fullmatch(name):
        return _in_folder(fetched(name, "--student"), pipeline)
    if REPOSITORY.match(name) and name.count("/") > 1:
        return [_of_file(_fetched(name), pipeline)]
    close = unknown("student", name, shipped) if shipped and "/" not in name else ""
    raise FewstepError(f"--student: got {name!r}; accepted: {ACCEPTED}" + (f" ({close})" if close else ""))


def shipped_by_name() -> dict[str, dict[str, Path]]:
    """Folders of the shipped students by name and stage: "mdt-vd" is that of each stage, "trellis/mdt-vd" (with the
    backbone) and "slat-mdt-vd" (as its folder is called) that of one."""
    found: dict[str, dict[str, Path]] = {}
    for stage, flow in FLOWS.items():
        for name, folder in shipped_students(stage).items():
            for alias in {name, folder.name, f"{flow.name}/{name}"}:
                found.setdefault(alias, {})[stage] = folder
    return found


def _in_folder(folder: Path, pipeline: Pipeline) -> list[Student]:
    if (folder / PIPELINE).is_file():
        raise FewstepError(f"--student: got {str(folder)!r}, a whole pipeline; accepted as: --teacher {folder}")
    inner = [folder / stage for stage in STAGES if (folder / stage).is_dir()]
    if inner:
        return [replace(_one(_in_folder(path, pipeline), path), path=path) for path in inner]
    if (folder / INFO).is_file() or (folder / "student" / INFO).is_file():
        return [_of_folder(folder, pipeline)]
    listed = sorted(folder.iterdir())
    indices = [path for path in listed if path.name.endswith(INDEX)]
    files = indices or [path for path in listed if path.suffix in SUFFIXES]
    if not files:
        raise FewstepError(f"--student: got {str(folder)!r}, a folder without weights; accepted: {ACCEPTED}")
    return [_of_file(path, pipeline) for path in files]


def _one(found: list[Student], path: Path) -> Student:
    if len(found) != 1 or found[0].stage != path.name:
        stages = ", ".join(student.stage for student in found)
        raise FewstepError(f"--student {str(path)!r}: holds {stages}; accepted: one student of stage {path.name!r}")
    return found[0]


def _of_folder(folder: Path, pipeline: Pipeline) -> Student:
    """A folder that ``fewstep distill`` wrote, with its contract."""
    info = read_info(folder)
    backbone = registry().get("backbone", info.backbone).load()
    if not issubclass(backbone, Flow):
        raise FewstepError(f"--student {str(folder)!r}: a student of {info.backbone!r}; accepted: of a TRELLIS flow")
    check_folder_fits(folder, pipeline.name, pipeline.arguments[backbone.stage][1])
    compare_decoders(folder, info.config, backbone, pipeline)
    return Student(backbone.stage, folder, info.method, info.contract, lambda: distilled(folder))


def distilled(folder: Path) -> Flow:
    """The student of a folder, for inference."""
    return cast(Flow, load_student(folder)[0]).requires_grad_(False)


def _of_file(path: Path, pipeline: Pipeline) -> Student:
    """A checkpoint pair, or weights alone, for which the pipeline's own architecture is assumed."""
    file = split_key(path)[0]
    if (file.parent / INFO).is_file() and file.stem == "model":
        return _of_folder(file.parent, pipeline)
    config = Path(stem_of(file) + ".json")
    if not config.is_file():
        stage = stage_of_file(path, pipeline)
        return Student(stage, path, "weights without arguments", None, lambda: load_released(path, stage, pipeline))
    name, args = read_config(config)
    stage = _stage_of_class(config, name)
    check_fits(path, args, pipeline.name, pipeline.arguments[stage][1])
    return Student(stage, path, "checkpoint pair", None, lambda: _loaded(path, stage, pipeline))


def _loaded(path: Path, stage: str, pipeline: Pipeline) -> Flow:
    return pipeline.as_flow(stage, load_as(CLASSES[STAGES[stage]], path)).eval().requires_grad_(False)


def _stage_of_class(config: Path, name: str) -> str:
    for stage, role in STAGES.items():
        if MODELS.get(name) is CLASSES[role]:
            return stage
    wanted = " or a ".join(CLASSES[role].__name__ for role in STAGES.values())
    raise FewstepError(f"--student {str(config)!r}: holds a {name}; accepted: a {wanted}")


def check_folder_fits(folder: Path, place: str, theirs: Mapping[str, Any], keys: Sequence[str] = SHARED) -> None:
    """``check_fits`` for a student in a folder, as far as its network is described there."""
    for path in (folder / "model.json", folder / "student" / "model.json"):
        if path.is_file():
            return check_fits(folder, read_config(path)[1], place, theirs, keys)


def check_fits(
    path: Path, args: Mapping[str, Any], place: str, theirs: Mapping[str, Any], keys: Sequence[str] = SHARED
) -> None:
    """Raise FewstepError for a student whose inputs or outputs are not those of the network that it replaces.

    Args:
        path: of the student.
        args: of its network.
        place: what it is to fit, for the message.
        theirs: the arguments of the network there.
        keys: of the arguments that have to agree.
    """
    pairs = {key: (args.get(key), theirs.get(key)) for key in keys}
    other = [f"{key} {got} instead of {wanted}" for key, (got, wanted) in pairs.items() if got != wanted]
    if other:
        raise FewstepError(
            f"--student {str(path)!r}: does not fit {place}: {', '.join(other)}; give its own teacher's pipeline with "
            "--teacher"
        )


def _fetched(name: str) -> Path:
    """A file from the hub, fetched with the json file beside it if there is one; a ``:KEY`` at the end is kept."""
    owner, repository, file = name.split("/", 2)
    file, colon, key = file.partition(":")
    place = Repository(f"{owner}/{repository}")
    try:
        found = place.fetch(file)
    except Absent:
        raise FewstepError(f"--student: got {name!r}; {place.name} holds no file {file!r}") from None
    with suppress(Absent):
        place.fetch(str(Path(file).with_suffix(".json")))
    return Path(f"{found}{colon}{key}")
