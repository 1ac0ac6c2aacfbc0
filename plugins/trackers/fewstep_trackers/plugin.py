"""What the trackers' plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_trackers(register: Register) -> None:
    register(
        "tensorboard",
        target="fewstep_trackers.services:TensorBoard",
        summary="TensorBoard event files in the run's folder",
    )
    register("wandb", target="fewstep_trackers.services:WandB", summary="Weights & Biases")
