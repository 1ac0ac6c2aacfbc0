"""``ParallelConfig``: the ``parallel`` table of a run. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewstep.config.base import Strict


class ParallelConfig(Strict):
    """How the processes of a run share its work. It may change on resume, since no result depends on it."""

    kind: Literal["auto", "none", "ddp", "fsdp"] = Field(
        default="auto",
        description="ddp: each process has all weights; fsdp: weights are sharded by blocks; none: one process; auto: "
        "none outside torchrun, there by the size of the network",
    )
    mesh: tuple[int, int] | None = Field(
        default=None,
        description="fsdp: number of replicas, and of processes in each; none: one replica of all processes",
    )
    timeout: float = Field(
        default=20.0,
        gt=0,
        description="seconds within an iteration after which a process that is silent counts as lost",
    )
