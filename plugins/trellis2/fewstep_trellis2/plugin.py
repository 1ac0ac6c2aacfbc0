"""What the TRELLIS.2 plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register, RegisterShared


@hookimpl
def register_backbones(register: Register) -> None:
    for name, target, summary in (
        ("trellis2", "structure:StructureStage", "structure flow: image to occupancy"),
        ("trellis2-shape", "latents:ShapeStage", "shape flow at 512: image and occupancy to latents on voxels"),
        ("trellis2-shape-1024", "latents:FineShapeStage", "shape flow at 1024, on a grid of 64 cells"),
        ("trellis2-texture", "latents:TextureStage", "texture flow: image and shape latents to texture latents"),
    ):
        register(name, target=f"fewstep_trellis2.{target}", summary=f"TRELLIS.2 {summary}")


@hookimpl
def register_datasets(register: Register) -> None:
    for stem, target, config in (
        ("structure", "StructureData", "StructureDataConfig"),
        ("shape", "ShapeData", "ShapeDataConfig"),
        ("shape-1024", "FineShapeData", "FineShapeDataConfig"),
        ("texture", "TextureData", "TextureDataConfig"),
    ):
        register(
            f"trellis2-{stem}",
            target=f"fewstep_trellis2.dataset.sets:{target}",
            config=f"fewstep_trellis2.dataset.config:{config}",
            summary=f"TRELLIS.2's own data layout: {stem} latents with pictures",
        )


@hookimpl
def register_shared_commands(register: RegisterShared) -> None:
    register(
        "generate",
        "trellis2",
        target="fewstep_trellis2.generate.cli:generate",
        function="fewstep_trellis2.generate.api:generate",
        summary="textured meshes from pictures",
    )
    register(
        "app",
        "trellis2",
        target="fewstep_trellis2.generate.cli:app",
        summary="textured meshes from pictures",
    )
    register(
        "export",
        "trellis2",
        target="fewstep_trellis2.generate.cli:export",
        summary="a pipeline folder that TRELLIS.2 itself loads",
    )
    register(
        "data inspect",
        "trellis2",
        target="fewstep_trellis2.dataset.command:inspect",
        summary="data roots in TRELLIS.2's own layout",
    )
