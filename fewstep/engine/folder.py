"""A run's folder: who may write into it, what it was started with, and what may change on resume."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewstep.config.base import flatten
from fewstep.errors import FewstepError
from fewstep.files import TEMP, check_place, clean
from fewstep.texts import read_json

CONFIG = "config.json"
FREE = (
    "train.checkpoint_every",
    "train.export",
    "train.keep",
    "train.log_every",
    "train.samples_every",
    "parallel.kind",
    "parallel.mesh",
    "parallel.timeout",
)


def occupied(folder: Path) -> bool:
    """Whether the folder has contents that a new run must not overwrite."""
    if not folder.exists():
        return False
    return not folder.is_dir() or any(not path.name.startswith(TEMP) for path in folder.iterdir())


def check(folder: Path, resume: bool) -> None:
    """Refuse to overwrite a run, to resume where there is none, and to use a place that cannot be written.

    Raises:
        FewstepError: saying whether ``--resume`` or ``--out`` helps.
    """
    check_place("--out", folder)
    if resume and not folder.is_dir():
        raise FewstepError(f"--resume: there is no run {str(folder)!r}; leave --resume out to start it")
    if resume and occupied(folder) and not (folder / CONFIG).is_file():
        text = f"--resume: {str(folder)!r} is not the folder of a run (it has no {CONFIG}); give another --out"
        raise FewstepError(text)
    if not resume and occupied(folder):
        raise FewstepError(f"{str(folder)!r} exists; pass --resume to continue it or another --out")


def check_stages(folder: Path, stages: Sequence[str], resume: bool) -> dict[str, bool]:
    """For each stage, whether its run (in a folder of its name) is resumed; those that have not begun are started.

    Raises:
        FewstepError: if one of the folders cannot be used.
    """
    foreign = resume and occupied(folder) and not any((folder / name).is_dir() for name in stages)
    if foreign or (folder / CONFIG).is_file():
        raise FewstepError(f"{str(folder)!r} does not hold runs of stages {', '.join(stages)}; accepted: another --out")
    if not resume or not folder.is_dir():
        check(folder, resume)
    begun = {name: resume and occupied(folder / name) for name in stages}
    for name, resumed in begun.items():
        check(folder / name, resumed)
    return begun


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and lock it against a second process. The lock of a killed process is released by the system.

    On a file system without locks, a warning says so.

    Raises:
        FewstepError: if another process trains there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    except OSError as error:
        raise FewstepError(f"--out: got {str(folder)!r}; accepted: a folder to write to ({error.strerror})") from None
    try:
        if handle is not None:
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise FewstepError(f"{str(folder)!r}: another process trains there; accepted: another --out") from None
            except OSError as error:
                reason = f"the file system takes no lock ({error.strerror})"
                warnings.warn(f"{folder}: {reason}; do not start a second run there", stacklevel=3)
        clean(folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def started_with(folder: Path) -> dict[str, Any]:
    """The identity of the run, from its ``config.json``, for ``check_unchanged``.

    Raises:
        FewstepError: for a file that is damaged or not of a run.
    """
    file = folder / CONFIG
    try:
        return dict(read_json(file)["identity"])
    except (FewstepError, ValueError, KeyError, TypeError):
        raise FewstepError(f"{str(file)!r}: damaged, or not written by fewstep; give another --out") from None


def check_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], done: int, *, reads_total: bool) -> None:
    """Compare the config of a run with the one given on resume: only keys that do not affect training may differ.

    ``train.steps`` is one of them if the learning rate is constant and the objective has not read ``step.total``.

    Args:
        old, new: config tables, with the names of method, backbone and dataset.
        done: iterations done.

    Raises:
        FewstepError: listing every key that differs, with both values, or for fewer steps than are done.
    """
    before, now = dict(flatten(old)), dict(flatten(new))
    open_end = now.get("train.lr_schedule") == "constant" and not reads_total
    free = (*FREE, "train.steps") if open_end else FREE
    keys = [key for key in {**before, **now} if key not in free and before.get(key) != now.get(key)]
    if keys:
        lines = [f"  {key}: the run has {_shown(before, key)}, given now is {_shown(now, key)}" for key in keys]
        why = "" if open_end else " (not train.steps: a schedule of this run depends on it)"
        raise FewstepError(
            "--resume with a changed config:\n" + "\n".join(lines) + f"\naccepted: the run's own values; only "
            f"{', '.join(free)} may change{why}. For other values start a new run with another --out"
        )
    if now["train.steps"] < done:
        raise FewstepError(f"train.steps: got {now['train.steps']}; accepted: at least {done}, which are done")


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
