"""What the TRELLIS plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    import typer

    from fewstep.plugins.hookspecs import Register, RegisterShared


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
    from fewstep_shapes3d.score.command import score
    from fewstep_shapes3d.view.command import view

    for command in (score, view):
        app.command(no_args_is_help=True)(command)


@hookimpl
def register_shared_commands(register: RegisterShared) -> None:
    register(
        "generate",
        "trellis",
        target="fewstep_trellis.generate.cli:generate",
        function="fewstep_trellis.generate.api:generate",
        summary="meshes and Gaussians from pictures or texts",
    )
    register(
        "app",
        "trellis",
        target="fewstep_trellis.generate.cli:app",
        summary="meshes from pictures",
    )
    register(
        "export",
        "trellis",
        target="fewstep_trellis.generate.cli:export",
        summary="a pipeline folder that TRELLIS itself loads",
    )
    register(
        "teach",
        "trellis",
        target="fewstep_trellis.commands:teach",
        summary="VAE and flow teacher of either stage on a prepared set",
    )
    register(
        "data inspect",
        "trellis",
        target="fewstep_trellis.commands:inspect",
        summary="data roots in TRELLIS's own layout",
    )
    register(
        "data prepare",
        "meshes",
        target="fewstep_trellis.prepare.command:meshes",
        summary="Voxelise, render and encode mesh files (.glb, .obj, ...) into a prepared set or TRELLIS's layout.",
    )
    register(
        "data prepare",
        "sweethome3d",
        target="fewstep_shapes3d.data.command:prepare",
        summary="Voxelise, render and encode furniture catalogues (.sh3f) into a prepared set.",
    )
    register(
        "data prepare",
        "furniture",
        target="fewstep_shapes3d.data.command:furniture",
        summary="Make procedural furniture, voxelise, render and encode it into a prepared set.",
    )
    register(
        "data prepare",
        "furniture-files",
        target="fewstep_shapes3d.data.command:pieces",
        summary="Write procedural furniture as files: meshes, and pictures to generate them from.",
    )
