"""What a run must remember to go on bit for bit, gathered from a trainer and given back to it.

Draws need no state (each step seeds its own); weights, averages, moments, clip buffers, the loss scale and the
counters do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.engine.resume import TENSORS, Header
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of the run's state by name."""
    out = trainer.nets.state()
    for name, optimizer in trainer.optimizers.items():
        out.update({f"optim/{name}/{key}": value for key, value in optimizer.state().items()})
    return out


def scalars(trainer: Trainer) -> dict[str, Any]:
    """Everything else, as JSON values."""
    return {
        "seconds": trainer.seconds,
        "updates": trainer.nets.updates,
        "scaler": trainer.scaler.state_dict(),
        "evaluations": trainer.budget.snapshot(),
        "reads_total": trainer.notes.reads_total,
        **_surroundings(trainer),
    }


def restore(trainer: Trainer, header: Header, state: Mapping[str, Tensor]) -> list[str]:
    """Put a checkpoint back into a fresh trainer of the same config; what the user should know about it.

    Raises:
        FewstepError: for tensors that do not fit, naming the file.
    """
    own = {f"optim/{name}/": optimizer for name, optimizer in trainer.optimizers.items()}
    try:
        trainer.nets.load({key: value for key, value in state.items() if not key.startswith(tuple(own))})
        for prefix, optimizer in own.items():
            optimizer.load({key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix)})
    except FewstepError as error:
        raise FewstepError(f"checkpoint {str(header.folder / TENSORS)!r} cannot be resumed from: {error}") from None
    saved = header.scalars
    trainer.step, trainer.seconds = header.step, float(saved["seconds"])
    trainer.nets.updates.update({name: int(count) for name, count in saved["updates"].items()})
    trainer.scaler.load_state_dict(saved["scaler"])
    trainer.budget.reset(saved["evaluations"])
    trainer.notes.reads_total |= bool(saved["reads_total"])
    return _changed(trainer, saved)


def _surroundings(trainer: Trainer) -> dict[str, Any]:
    """What is no key of the config and yet decides over the last bits."""
    threads = torch.get_num_threads() if trainer.device.type == "cpu" else None
    return {
        "derivatives": trainer.tangents.mode,
        "device": trainer.device.type,
        "threads": threads,
        "torch": torch.__version__,
    }


def _changed(trainer: Trainer, saved: Mapping[str, Any]) -> list[str]:
    return [
        f"warning: the run goes on with {key} {value}, it was {saved.get(key)}: no longer bit for bit"
        for key, value in _surroundings(trainer).items()
        if saved.get(key) != value
    ]
