"""The checkpoints of a run as files: written atomically while training goes on, and only the last few kept.

A checkpoint is a folder with tensors in safetensors, and the rest in JSON with checksums. There is no pickle. Where
networks are sharded, each process writes its part of the tensors by ``torch.distributed.checkpoint``, in that library's
format. Any number of processes can resume from either.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.engine.liveness import Lost
from fewstep.engine.processes import Processes
from fewstep.engine.shards import is_sharded, save_shards
from fewstep.errors import FewstepError
from fewstep.files import digest, discard, new_folder, sha256, write_json, writing
from fewstep.interrupts import Interrupted

FORMAT = "fewstep-resume-3"
TENSORS, STATE = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What ``Store.save`` wrote into ``folder``. The tensors are on the CPU; sharded ones are not read yet."""

    folder: Path
    step: int
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    scalars: dict[str, Any]


class Store:
    """The last ``keep`` checkpoints of a run. A ``with`` block waits at its end for the checkpoint being written.

    Args:
        folder: holds one folder per checkpoint; made when the first is written.
        processes: those of the run. All of them call ``save``; the first one writes, and each writes its shards.
    """

    def __init__(self, folder: Path, keep: int = 2, processes: Processes | None = None) -> None:
        self.folder, self.keep, self.processes = folder, keep, processes or Processes()
        self._writing: Future[None] | None = None
        self._together = False  # whether all processes write to the checkpoint under way

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first, without one that a killed run left half-written."""
        names = [p.name for p in self.folder.glob("step-*") if p.is_dir()]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(
        self, step: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any], scalars: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint, then delete the oldest beyond ``keep``. The newest stays complete if the run is killed.

        Returns once the tensors are copied; a thread writes the files. It first waits for the previous checkpoint, so
        that there is one copy at a time.

        Raises:
            Unwritable: if the disk refuses; older checkpoints stay. An error in the thread is raised by the next call
                of ``save``, ``check`` or ``settle``.
        """
        self.settle()
        state = {"format": FORMAT, "step": step, "config": dict(config), "scalars": dict(scalars)}
        self._together = is_sharded(tensors)
        if self._together or self.processes.rank == 0:
            # No two copies share storage, which safetensors would refuse; tied weights themselves do.
            copies = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
            self._writing = _begun(self._write, copy.deepcopy(state), copies)
        self.processes.wait()

    def _write(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        folder = self.path(state["step"])
        if self.processes.rank:
            with writing(folder):
                save_shards(tensors, None, self.processes)
            return
        with new_folder(folder) as temp:
            if self._together:
                state["sha256"] = save_shards(tensors, temp, self.processes)
            else:
                save_file(dict(tensors), temp / TENSORS)
                state["sha256"] = sha256(temp / TENSORS)
            write_json(temp / STATE, {**state, "digest": digest(state)})
        for old in self.steps()[: -self.keep]:
            discard(self.path(old))

    def check(self) -> None:
        """Raise the error of the writing thread, if it has ended with one."""
        if self._writing is not None and self._writing.done():
            self.settle()

    def settle(self) -> None:
        """Wait for the checkpoint under way, and raise its error if there was one."""
        begun, self._writing = self._writing, None
        if begun is not None:
            begun.result()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, Interrupted):
            with self.processes.watched():
                self.settle()
                self.processes.wait()  # torchrun kills the others when one of them exits with a signal's code
        elif not (self._together and isinstance(error, Lost)):  # the thread might wait for the missing process
            with suppress(Exception):  # the error that ended the run says more
                self.settle()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint, including the one under way; None if there is none.

        Raises:
            FewstepError: for a missing, truncated, changed or foreign file, naming it.
        """
        self.settle()
        steps = self.steps()
        if not steps:
            return None
        file = self.path(steps[-1]) / STATE
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise self._damaged(file, str(error.strerror or error)) from None
        except ValueError:
            raise self._damaged(file, "truncated or not JSON") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise self._damaged(file, f"not a resume state of this version ({FORMAT})")
        if state.pop("digest", None) != digest(state) or state["step"] != steps[-1]:
            raise self._damaged(file, "changed since it was written (its checksum does not match)")
        folder, sums = file.parent, state["sha256"]
        for name, expected in (sums if isinstance(sums, dict) else {TENSORS: sums}).items():
            try:
                # The first process checks the shards for all.
                if (self.processes.rank == 0 or name == TENSORS) and sha256(folder / name) != expected:
                    why = "truncated or changed since it was written (its checksum does not match)"
                    raise self._damaged(folder / name, why)
            except OSError as error:
                raise self._damaged(folder / name, str(error.strerror or error)) from None
        tensors = {} if isinstance(sums, dict) else load_file(folder / TENSORS)
        return Checkpoint(folder, state["step"], tensors, state["config"], state["scalars"])

    def _damaged(self, file: Path, why: str) -> FewstepError:
        text = f"checkpoint {str(file)!r} cannot be resumed from: {why}"
        *older, newest = self.steps()
        if not older:
            return FewstepError(f"{text}; there is no older one: start a new run with another --out")
        return FewstepError(
            f"{text}; delete {str(self.path(newest))!r} to resume from the older one of step {older[-1]}"
        )


def _begun(work: Callable[..., None], *args: Any) -> Future[None]:
    """Start the work in a daemon thread, which does not keep the process from exiting."""
    done = Future[None]()

    def run() -> None:
        try:
            work(*args)
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, name="checkpoint", daemon=True).start()
    return done
