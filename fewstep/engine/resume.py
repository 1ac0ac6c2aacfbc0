"""Resume state: what a trainer must remember to go on bit for bit, and the files that hold it.

A checkpoint is a folder with tensors in safetensors, the rest in JSON and checksums. No pickle. Where networks are
sharded, each process writes its part of the tensors by ``torch.distributed.checkpoint``, in that library's format. Any
number of processes goes on from both. Draws need no state, since each step seeds its own; weights, EMAs, moments, clip
buffers, the loss scale and counters do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.derivatives import Tangents
from fewstep.engine.processes import Processes
from fewstep.engine.shards import SHARDS, is_sharded, read_shards, save_shards
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError
from fewstep.files import digest, discard, new_folder, sha256, write_json, writing

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
    """The checkpoints of a run, the last ``keep`` of them.

    Args:
        folder: holds one folder a checkpoint; made when the first is written.
        processes: those of the run. All of them save; the first one writes, and every one its shards.
    """

    def __init__(self, folder: Path, keep: int = 2, processes: Processes | None = None) -> None:
        self.folder, self.keep, self.processes = folder, keep, processes or Processes()

    def steps(self) -> list[int]:
        """The steps with a checkpoint, oldest first. What a killed run left half-written does not count."""
        names = [p.name for p in self.folder.glob("step-*") if p.is_dir()]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(
        self, step: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any], scalars: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint, then drop the oldest beyond ``keep``. Killed at any point, the newest is whole.

        Raises:
            Unwritable: when the disk refuses; older checkpoints stay.
        """
        if self.processes.rank == 0:
            with new_folder(self.path(step)) as temp:
                if is_sharded(tensors):
                    sums: Any = save_shards(tensors, temp, self.processes)
                else:
                    # Copies, because safetensors refuses tensors that share storage, such as tied weights.
                    copies = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
                    save_file(copies, temp / TENSORS)
                    sums = sha256(temp / TENSORS)
                state = {"format": FORMAT, "step": step, "config": dict(config)}
                state |= {"scalars": dict(scalars), "sha256": sums}
                write_json(temp / STATE, {**state, "digest": digest(state)})
            for old in self.steps()[: -self.keep]:
                discard(self.path(old))
        elif is_sharded(tensors):
            with writing(self.path(step)):
                save_shards(tensors, None, self.processes)
        self.processes.wait()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint; None where there is none.

        Raises:
            FewstepError: for a missing, truncated, changed or foreign file, naming it.
        """
        steps = self.steps()
        if not steps:
            return None
        file = self.path(steps[-1]) / STATE
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise self._damaged(file, str(error.strerror or error)) from None
        except ValueError:
            raise self._damaged(file, "truncated or no JSON") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise self._damaged(file, f"no resume state of this version ({FORMAT})")
        if state.pop("digest", None) != digest(state) or state["step"] != steps[-1]:
            raise self._damaged(file, "changed since it was written (its checksum does not match)")
        folder, sums = file.parent, state["sha256"]
        for name, expected in (sums if isinstance(sums, dict) else {TENSORS: sums}).items():
            try:
                # One process checks the shards for all.
                if (self.processes.rank == 0 or name == TENSORS) and sha256(folder / name) != expected:
                    why = "truncated or changed since it was written (its checksum does not match)"
                    raise self._damaged(folder / name, why)
            except OSError as error:
                raise self._damaged(folder / name, str(error.strerror or error)) from None
        tensors = {} if isinstance(sums, dict) else load_file(folder / TENSORS)
        return Checkpoint(folder, state["step"], tensors, state["config"], state["scalars"])

    def _damaged(self, file: Path, why: str) -> FewstepError:
        text = f"checkpoint {str(file)!r} cannot be resumed from: {why}"
        older = self.steps()[:-1]
        if not older:
            return FewstepError(f"{text}; there is no older one: start a new run with another --out")
        return FewstepError(f"{text}; delete {str(file.parent)!r} to resume from the older one of step {older[-1]}")


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of the run's state by name."""
    out = trainer.nets.state()
    for name, optimizer in trainer.optimizers.items():
        out.update({f"optim/{name}/{key}": value for key, value in optimizer.state().items()})
    return out


def scalars_of(trainer: Trainer) -> dict[str, Any]:
    """The rest of the run's state, as JSON values."""
    found = trainer.derivatives
    return {
        "seconds": trainer.seconds,
        "updates": trainer.nets.updates,
        "scaler": trainer.scaler.state_dict(),
        "skipped": trainer.skipped,
        "evaluations": trainer.evaluations,
        "reads_total": trainer.reads_total,
        "derivatives": [found.wanted.mode, found.wanted.reason] if found.probed else None,
        **_surroundings(trainer),
    }


def restore(trainer: Trainer, found: Checkpoint) -> list[str]:
    """Put a checkpoint back into a fresh trainer of the same config; what the user should know about it.

    Raises:
        FewstepError: for tensors that do not fit, naming the file.
    """
    own = {f"optim/{name}/": optimizer for name, optimizer in trainer.optimizers.items()}
    tensors = found.tensors or read_shards(found.folder, _places(trainer))
    try:
        trainer.nets.load({key: value for key, value in tensors.items() if not key.startswith(tuple(own))})
        for prefix, optimizer in own.items():
            optimizer.load({key[len(prefix) :]: v for key, v in tensors.items() if key.startswith(prefix)})
    except FewstepError as error:
        file = found.folder / (TENSORS if found.tensors else SHARDS)
        raise FewstepError(f"checkpoint {str(file)!r} cannot be resumed from: {error}") from None
    saved = found.scalars
    trainer.step, trainer.seconds = found.step, float(saved["seconds"])
    trainer.nets.updates.update({name: int(count) for name, count in saved["updates"].items()})
    trainer.scaler.load_state_dict(saved["scaler"])
    trainer.skipped.update(saved["skipped"])
    trainer.budget.reset(saved["evaluations"] if trainer.processes.rank == 0 else None)  # they are summed
    trainer.reads_total |= bool(saved["reads_total"])
    if saved["derivatives"] is not None:
        mode, reason = saved["derivatives"]
        trainer.derivatives.wanted = Tangents(mode, reason=reason)
    return [
        f"warning: the run goes on with {key} {value}, it was {saved.get(key)}: no longer bit for bit"
        for key, value in _surroundings(trainer).items()
        if saved.get(key) != value
    ]


def _places(trainer: Trainer) -> dict[str, Tensor]:
    """Tensors like those of the run's state that may be sharded, by name."""
    found = trainer.nets.state()
    for name, optimizer in trainer.optimizers.items():
        found |= {f"optim/{name}/{key}": parameter for key, parameter in optimizer.places().items()}
    return found


def _surroundings(trainer: Trainer) -> dict[str, Any]:
    """What is not in the config and may change the last bits of a result."""
    threads = torch.get_num_threads() if trainer.device.type == "cpu" else None
    return {"device": trainer.device.type, "threads": threads, "torch": torch.__version__}
