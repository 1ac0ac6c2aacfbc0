"""What the flow-matching plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register, RegisterShared


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "flow-matching",
        target="fewstep_flow_matching.objective:FlowMatching",
        summary="trains a teacher from data (fewstep teach), no distillation",
    )


@hookimpl
def register_shared_commands(register: RegisterShared) -> None:
    register(
        "teach",
        "*",
        target="fewstep_flow_matching.command:teach",
        summary="a teacher by flow matching, on any backbone without a command of its own",
    )
