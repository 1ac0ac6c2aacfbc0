"""Students in place of a pipeline's flows: what ``--student`` may name, and which stage it is for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fewstep_trellis.checkpoint import read_config
from fewstep_trellis.pipeline.students import SHARED, Student, check_fits, check_folder_fits, distilled, one_each
from fewstep_trellis.weightfiles import split_key, stem_of, tensor_file

from fewstep.engine.export import INFO, read_info
from fewstep.engine.hub import REPOSITORY, fetched
from fewstep.errors import FewstepError, unknown
from fewstep_trellis2.flow import STAGES
from fewstep_trellis2.models import MODELS
from fewstep_trellis2.pipeline.loading import CLASSES, AnyPipeline
from fewstep_trellis2.pipeline.spec import STAGE, STRUCTURE_FLOW

ACCEPTED = (
    f"a folder of fewstep distill, one that holds such folders as {'/, '.join(STAGES)}/, owner/name of one on the hub, "
    "or STAGE=FILE with a checkpoint pair (json + safetensors)"
)


def find_students(names: Iterable[str], pipeline: AnyPipeline, roles: Iterable[str]) -> dict[str, Student]:
    """The students that ``--student`` names, by stage; no weights are kept in memory.

    Args:
        names: see ``ACCEPTED``.
        pipeline: whose flows they replace.
        roles: of the flows that are run; a student for another stage is refused.

    Raises:
        FewstepError: for what is not a student, two of a stage, one for a stage not run, or one that does not fit.
    """
    run = {STAGE[role]: role for role in roles}
    return one_each((name, student) for name in names for student in _named(name, pipeline, run))


def _named(name: str, pipeline: AnyPipeline, run: dict[str, str]) -> Iterator[Student]:
    stage, equals, file = name.partition("=")
    if equals and stage in STAGES:
        yield _of_pair(stage, Path(file), pipeline, run)
    elif equals and not os.path.exists(name):
        raise unknown("stage of --student", stage, STAGES)
    elif os.path.isdir(name) or REPOSITORY.fullmatch(name):
        place = Path(name) if os.path.isdir(name) else fetched(name, "--student")
        inner = [place / stage for stage in STAGES if (place / stage).is_dir()]
        for folder in inner or [place]:
            yield _of_folder(folder, pipeline, run)
    else:
        raise FewstepError(f"--student: got {name!r}; accepted: {ACCEPTED}")


def _of_folder(folder: Path, pipeline: AnyPipeline, run: dict[str, str]) -> Student:
    """A folder that ``fewstep distill`` wrote, with its contract."""
    if not any((place / INFO).is_file() for place in (folder, folder / "student")):
        raise FewstepError(f"--student: got {str(folder)!r}, a folder without a student; accepted: {ACCEPTED}")
    info = read_info(folder)
    stage = next((stage for stage, backbone in STAGES.items() if backbone == info.backbone), None)
    if stage is None:
        raise FewstepError(
            f"--student {str(folder)!r}: a student of {info.backbone!r}; accepted: of {', '.join(STAGES.values())}"
        )
    role = _role(str(folder), stage, run)
    check_folder_fits(folder, *_place(role, pipeline))
    return Student(stage, folder, info.method, info.contract, lambda: distilled(folder))


def _of_pair(stage: str, path: Path, pipeline: AnyPipeline, run: dict[str, str]) -> Student:
    role, config = _role(str(path), stage, run), Path(stem_of(split_key(path)[0]) + ".json")
    if not config.is_file() or not tensor_file(split_key(path)[0]).is_file():
        raise FewstepError(f"--student {stage}={path}: there is no such checkpoint; accepted: {ACCEPTED}")
    network, args = read_config(config)
    if MODELS.get(network) is not CLASSES[role]:
        raise FewstepError(f"--student {stage}={path}: holds a {network}; accepted: a {CLASSES[role].__name__}")
    check_fits(path, args, *_place(role, pipeline))
    return Student(stage, path, "checkpoint pair", None, lambda: pipeline.flow(role, path))


def _role(name: str, stage: str, run: dict[str, str]) -> str:
    if stage not in run:
        raise FewstepError(
            f"--student {name!r}: is for stage {stage!r}, which this pipeline type does not run; accepted: "
            f"{', '.join(run)}, or another --type"
        )
    return run[stage]


def _place(role: str, pipeline: AnyPipeline) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """What a student of a role must fit: its name for messages, its arguments, and which of these must agree."""
    keys = SHARED if role == STRUCTURE_FLOW else tuple(key for key in SHARED if key != "resolution")  # voxels: any grid
    return f"stage {STAGE[role]!r} of {pipeline.name}", pipeline.arguments(role), keys
