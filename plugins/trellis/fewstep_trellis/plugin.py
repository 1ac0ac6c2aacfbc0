"""What the TRELLIS plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    import typer

    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "flow-matching",
        target="fewstep_trellis.teach.flow:FlowMatching",
        summary="trains a teacher from data (fewstep teach), no distillation",
    )


@hookimpl
def register_backbones(register: Register) -> None:
    register(
        "trellis",
        target="fewstep_trellis.backbone:StructureFlow",
        summary="TRELLIS sparse-structure flow: image to occupancy (a nano model is shipped)",
    )
    register(
        "trellis-slat",
        target="fewstep_trellis.slat:StructuredLatentFlow",
        summary="TRELLIS structured-latent flow: image and occupancy to latents on voxels (a nano model is shipped)",
    )


@hookimpl
def register_datasets(register: Register) -> None:
    register(
        "sweethome3d",
        target="fewstep_trellis.dataset:PreparedObjects",
        summary="prepared objects with condition views (a set from SweetHome3D is shipped)",
    )
    register(
        "sweethome3d-slat",
        target="fewstep_trellis.slat_dataset:PreparedLatents",
        summary="the same objects as structured latents on their occupied voxels",
    )
    register(
        "trellis-ss",
        target="fewstep_trellis.official.dataset:StructureLatents",
        config="fewstep_trellis.official.config:StructureConfig",
        summary="TRELLIS's own data layout: structure latents with pictures or captions",
    )
    register(
        "trellis-slat",
        target="fewstep_trellis.official.dataset:StructuredLatents",
        config="fewstep_trellis.official.config:LatentsConfig",
        summary="TRELLIS's own data layout: structured latents on voxels with pictures or captions",
    )


@hookimpl
def register_commands(app: typer.Typer) -> None:
    from fewstep_trellis.commands import add_commands

    add_commands(app)
