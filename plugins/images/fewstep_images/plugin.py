"""What the images plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_backbones(register: Register) -> None:
    register(
        "images",
        target="fewstep_images.network:ImageFlow",
        config="fewstep_images.config:ImagesConfig",
        summary="digits of 8 x 8 or 28 x 28 with an exact teacher and a small residual student",
    )


@hookimpl
def register_datasets(register: Register) -> None:
    register(
        "images",
        target="fewstep_images.dataset:SmoothedImages",
        config="fewstep_images.config:ImagesDataConfig",
        summary="small images with noise on them, their digit as condition",
    )
