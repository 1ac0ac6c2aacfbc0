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
    """Whether something lies there that a new run must not overwrite."""
    if not folder.exists():
        return False
    return not folder.is_dir() or any(not path.name.startswith(TEMP) for path in folder.iterdir())


def check(folder: Path, resume: bool) -> None:
    """Refuse to overwrite, to resume nothing, and a place that cannot be written.

    Raises:
        FewstepError: saying which of ``--resume`` and ``--out`` helps.
    """
    check_place("--out", folder)
    if resume and not folder.is_dir():
        raise FewstepError(f"--resume: there is no run {str(folder)!r}; leave --resume out to start it")
    if resume and occupied(folder) and not (folder / CONFIG).is_file():
        raise FewstepError(f"--resume: {str(folder)!r} is no run's folder (it has no {CONFIG}); give another --out")
    if not resume and occupied(folder):
        raise FewstepError(f"{str(folder)!r} exists; pass --resume to continue it or another --out")


def check_stages(folder: Path, stages: Sequence[str], resume: bool) -> dict[str, bool]:
    """Whether each stage's run, in a folder of its name, goes on where it was; those that had not begun start.

    Raises:
        FewstepError: where one of the folders cannot be used.
    """
    foreign = resume and occupied(folder) and not any((folder / name).is_dir() for name in stages)
    if foreign or (folder / CONFIG).is_file():
        raise FewstepError(f"{str(folder)!r} does not hold runs of stages {', '.join(stages)}; accepted: another --out")
    if not resume or not folder.is_dir():
        check(folder, resume)
    begun = {name: resume and occupied(folder / name) for name in stages}
    for name, again in begun.items():
        check(folder / name, again)
    return begun


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it against a second process. A killed process lets go by itself.

    On a file system without locks a warning says that nothing holds it.

    Raises:
        FewstepError: when another process trains there, or the disk refuses.
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
    """The identity of the run, from its ``config.json``: what ``check_unchanged`` compares.

    Raises:
        FewstepError: for a file that is not one.
    """
    file = folder / CONFIG
    try:
        return dict(read_json(file)["identity"])
    except (FewstepError, ValueError, KeyError, TypeError):
        raise FewstepError(f"{str(file)!r}: damaged, or not written by fewstep; give another --out") from None


def check_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], done: int, *, reads_total: bool) -> None:
    """Compare the config of a run with the one given on resume: only keys without influence on training may differ.

    ``train.steps`` is one of them where the learning rate is constant and the objective has not read ``step.total``.

    Args:
        old, new: config tables, with the names of method, backbone and dataset beside them.
        done: iterations done.

    Raises:
        FewstepError: listing every key that differs with both values, or for fewer steps than are done.
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
