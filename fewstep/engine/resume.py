"""Resume state: what a trainer must store to continue bit for bit.

That is weights, EMAs, moments, clip buffers, the loss scale and counters. Draws need no state, since each step seeds
its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.derivatives import Tangents
from fewstep.engine.shards import SHARDS, read_shards
from fewstep.engine.store import TENSORS, Checkpoint
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of the run's state by name."""
    out = trainer.nets.state()
    for name, optimizer in trainer.optimizers.items():
        out.update({f"optim/{name}/{key}": value for key, value in optimizer.state().items()})
    return out


def scalars_of(trainer: Trainer) -> dict[str, Any]:
    """The rest of the run's state, as JSON values."""
    derivatives = trainer.derivatives
    return {
        "seconds": trainer.seconds,
        "updates": trainer.nets.averages.updates,
        "scaler": trainer.scaler.state_dict(),
        "skipped": trainer.skipped,
        "evaluations": trainer.evaluations,
        "reads_total": trainer.reads_total,
        "derivatives": [derivatives.wanted.mode, derivatives.wanted.reason] if derivatives.probed else None,
        **_surroundings(trainer),
    }


def restore(trainer: Trainer, checkpoint: Checkpoint) -> list[str]:
    """Put a checkpoint into a fresh trainer of the same config; returns what the user should know about it.

    Raises:
        FewstepError: for tensors that do not fit, naming the file.
    """
    own = {f"optim/{name}/": optimizer for name, optimizer in trainer.optimizers.items()}
    tensors = checkpoint.tensors or read_shards(checkpoint.folder, _places(trainer))
    try:
        trainer.nets.load({key: value for key, value in tensors.items() if not key.startswith(tuple(own))})
        for prefix, optimizer in own.items():
            optimizer.load({key[len(prefix) :]: v for key, v in tensors.items() if key.startswith(prefix)})
    except FewstepError as error:
        file = checkpoint.folder / (TENSORS if checkpoint.tensors else SHARDS)
        raise FewstepError(f"checkpoint {str(file)!r} cannot be resumed from: {error}") from None
    saved = checkpoint.scalars
    trainer.step, trainer.seconds = checkpoint.step, float(saved["seconds"])
    trainer.nets.averages.updates.update({name: int(count) for name, count in saved["updates"].items()})
    trainer.scaler.load_state_dict(saved["scaler"])
    trainer.skipped.update(saved["skipped"])
    trainer.budget.reset(saved["evaluations"] if trainer.processes.rank == 0 else None)  # summed over processes later
    trainer.reads_total |= bool(saved["reads_total"])
    if saved["derivatives"] is not None:
        mode, reason = saved["derivatives"]
        trainer.derivatives.wanted = Tangents(mode, reason=reason)
    return [
        f"warning: the run continues with {key} {value} instead of {saved.get(key)}: it is not bit for bit the same"
        for key, value in _surroundings(trainer).items()
        if saved.get(key) != value
    ]


def _places(trainer: Trainer) -> dict[str, Tensor]:
    """Tensors like those of the run's state that may be sharded, by name."""
    places = trainer.nets.state()
    for name, optimizer in trainer.optimizers.items():
        places |= {f"optim/{name}/{key}": parameter for key, parameter in optimizer.places().items()}
    return places


def _surroundings(trainer: Trainer) -> dict[str, Any]:
    """What is not in the config but may change the last bits of a result."""
    threads = torch.get_num_threads() if trainer.device.type == "cpu" else None
    return {"device": trainer.device.type, "threads": threads, "torch": torch.__version__}
