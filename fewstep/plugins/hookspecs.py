"""The eight hooks. A plugin implements those it needs with ``@fewstep.hookimpl`` and is found through the entry-point
group "fewstep". Hooks should not import torch: targets and configs are "package.module:Name", imported on first use.

Each ``register_*`` hook is given a function ``register(name, target=..., config=..., summary="...", aliases=())``,
except the last two, which are about commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    import typer

GROUP = "fewstep"
SHARED_COMMANDS = {
    "generate": "Make finished results from pictures, texts or other prompts.",
    "app": "Serve a page on which pictures become results, with students side by side.",
    "export": "Write students in the file format of the backbone's original project.",
    "teach": "Train a teacher from data.",
    "data inspect": "Count what a data set holds, and say what is left out and why.",
    "data prepare": "Turn a raw source into a data set.",
}
ANY = "*"  # in place of a backbone's name: every backbone without an implementation of its own
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Register(Protocol):
    """The callback of the other ``register_*`` hooks.

    Args:
        name: what users call it.
        target: "package.module:Name" of the class, function or instance.
        config: "package.module:Name" of the config class; by default the target's ``Config``.
        summary: one line.
        aliases: further names.
    """

    def __call__(
        self, name: str, *, target: str, config: str | None = None, summary: str = "", aliases: tuple[str, ...] = ()
    ) -> None: ...


class RegisterShared(Protocol):
    """The callback of ``register_shared_commands``.

    Args:
        command: one of ``SHARED_COMMANDS``.
        name: the backbone that this implementation serves, or ``ANY``, which has an option ``--backbone`` of its own;
            for "data prepare" the kind of source.
        target: "package.module:function" with typer's annotations, otherwise without an option ``--backbone``.
        summary: one line.
        function: "package.module:function" for Python, called as ``fewstep.generate`` is.
    """

    def __call__(
        self, command: str, name: str, *, target: str, summary: str = "", function: str | None = None
    ) -> None: ...


@hookspec
def register_objectives(register: Register) -> None:
    """Distillation methods: subclasses of ``fewstep.core.objective.Objective``.

    ``target="scm+dmd2"`` names a sum of registered methods. Its weights, starts and other settings are values of its
    preset ``presets/<name>/default.toml``.
    """


@hookspec
def register_backbones(register: Register) -> None:
    """Networks: subclasses of ``fewstep.core.backbone.Backbone``."""


@hookspec
def register_datasets(register: Register) -> None:
    """Data sets: subclasses of ``fewstep.core.dataset.Dataset``."""


@hookspec
def register_samplers(register: Register) -> None:
    """Samplers: each a ``fewstep.core.samplers.Sampler``, or a function with the signature of its call."""


@hookspec
def register_kernels(register: Register) -> None:
    """Implementations of an op: instances of ``fewstep.ops.Kernel``."""


@hookspec
def register_trackers(register: Register) -> None:
    """Where a run's numbers go: classes with the interface of ``fewstep.engine.trackers.Tracker``."""


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Further commands on the ``fewstep`` command line."""


@hookspec
def register_shared_commands(register: RegisterShared) -> None:
    """Implementations of commands that the core names (``SHARED_COMMANDS``), one for each backbone."""
