"""The seven hooks. A plugin implements those it needs with ``@fewstep.hookimpl`` and is found by the entry-point
group "fewstep"; none of them should import torch (targets and configs are "package.module:Name", loaded on use).

Each ``register_*`` hook is called with ``register(name, target=..., config=..., summary="...", aliases=())``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    import typer

GROUP = "fewstep"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Register(Protocol):
    """The callback a ``register_*`` hook is given; ``target`` and ``config`` are "package.module:Name"."""

    def __call__(
        self, name: str, *, target: str, config: str | None = None, summary: str = "", aliases: tuple[str, ...] = ()
    ) -> None: ...


@hookspec
def register_objectives(register: Register) -> None:
    """Distillation methods: subclasses of ``fewstep.core.objective.Objective``."""


@hookspec
def register_backbones(register: Register) -> None:
    """Networks: subclasses of ``fewstep.core.backbone.Backbone``."""


@hookspec
def register_datasets(register: Register) -> None:
    """Data sets: subclasses of ``fewstep.core.dataset.Dataset``."""


@hookspec
def register_samplers(register: Register) -> None:
    """Samplers: functions with the signature of ``fewstep.core.samplers.Sampler``."""


@hookspec
def register_kernels(register: Register) -> None:
    """Implementations of an op: instances of ``fewstep.ops.Kernel``."""


@hookspec
def register_trackers(register: Register) -> None:
    """Where a run's numbers go: classes with the interface of ``fewstep.engine.trackers.Tracker``."""


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Further commands on the ``fewstep`` command line."""
