"""What the toy plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_backbones(register: Register) -> None:
    register(
        "toy",
        target="fewstep_toy.network:ToyFlow",
        config="fewstep_toy.config:ToyConfig",
        summary="2-D mixtures with an exact teacher and a small MLP student",
    )


@hookimpl
def register_datasets(register: Register) -> None:
    register(
        "toy",
        target="fewstep_toy.dataset:ToyPoints",
        config="fewstep_toy.config:PointsConfig",
        summary="points of a 2-D mixture, dense or as ragged sets",
    )
