"""``fewstep.push``: a student with a model card, as a folder and on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from fewstep.api.loading import InFolder
from fewstep.api.push_card import card
from fewstep.engine.export import INFO, holds_info, load_student, read_info, student_folder
from fewstep.engine.hub import REPOSITORY, upload, upload_command
from fewstep.errors import FewstepError, invalid, need
from fewstep.files import check_place, new_folder, write_file
from fewstep.plugins.registry import registry
from fewstep.texts import read_text

CARD = "README.md"
TABLE, PICTURES = "table.md", ("chart.png", "sheet.png")  # of a bench


def push(
    student: Path | str | InFolder,
    repository: str,
    *,
    out: Path | str | None = None,
    dry_run: bool = False,
    bench: Path | str | None = None,
    teacher: str | None = None,
    license: str | None = None,
    private: bool = False,
    force: bool = False,
) -> Path:
    """Write a student's folder for the Hugging Face hub, and upload it; returns the folder.

    It holds the student as ``fewstep distill`` exported it, and ``README.md``, the model card. For a run of several
    stages it holds one such folder per stage.

    Args:
        student: a run or its folder, or a student's folder.
        repository: owner/name on the hub; created there if it does not exist.
        out: the folder to write; by default ``runs/hub/OWNER/NAME``.
        dry_run: write the folder and upload nothing.
        bench: folder of a bench, whose table and pictures go into the card.
        teacher: hub repository of the model that was distilled, for the card.
        license: licence identifier of the hub ("mit", "apache-2.0"), for the card.
        private: make a new repository private.
        force: replace an ``out`` that exists, if it is a folder with a card.

    Raises:
        FewstepError: if there is no finished student, for a malformed name or a folder that exists, and if the upload
            fails, saying where the folder is.
    """
    for key, name in (("repository", repository), ("--teacher", teacher)):
        if name is not None and not REPOSITORY.fullmatch(name):
            raise invalid(key, name, "owner/name on the hub")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise invalid("--license", license, "a key of the hub's list of licences, such as mit or apache-2.0")
    if not dry_run:
        need("huggingface_hub")
    table = None if bench is None else _table(Path(bench))
    place = Path("runs", "hub", repository) if out is None else Path(out)
    if os.path.lexists(place) and not (place / CARD).is_file():
        raise FewstepError(f"--out: {str(place)!r} exists and has no {CARD}; accepted: a path that does not exist")
    if os.path.lexists(place) and not force:
        raise FewstepError(
            f"--out: {str(place)!r} exists; accepted: --force to replace it, or to upload it as it is: "
            f"{upload_command(place, repository)}"
        )
    check_place("--out", place)
    folders = _by_stage(Path(student) if isinstance(student, Path | str) else student.folder)
    infos = {stage: load_student(folder)[1] for stage, folder in folders.items()}
    with new_folder(place) as temp:
        for stage, folder in folders.items():
            _copy([INFO, *infos[stage].sha256], student_folder(folder), temp / stage)
        pictures = [] if bench is None else [name for name in PICTURES if (Path(bench) / name).is_file()]
        _copy(pictures, Path(bench or "."), temp)
        write_file(temp / CARD, card(repository, infos, teacher, license, table, pictures))
    if not dry_run:
        methods = " and ".join(dict.fromkeys(info.method for info in infos.values()))
        upload(place, repository, f"Student by {methods}", private)
    return place


def _by_stage(folder: Path) -> dict[str, Path]:
    """The students of a run by stage, in the model's order; a single student under the name ""."""
    inner = [] if holds_info(folder) or not folder.is_dir() else [path for path in folder.iterdir() if holds_info(path)]
    stages = registry().get("backbone", read_info(inner[0]).backbone).load().stages if inner else ()
    return {name: folder / name for name in stages if folder / name in inner} or {"": folder}


def _copy(names: Iterable[str], source: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, folder / name)


def _table(bench: Path) -> str:
    if not (bench / TABLE).is_file():
        raise invalid("--bench", str(bench), f"the folder of a `fewstep bench` that ended, with {TABLE}")
    return read_text(bench / TABLE)
