"""Facts of TRELLIS.2's pipeline and training against our defaults: keys, roles, samplers, ways through the stages."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fewstep_trellis2.dataset.config import ENCODER, FineShapeDataConfig, ShapeDataConfig, StructureDataConfig
from fewstep_trellis2.latents import FineShapeStage, ShapeStage, TextureStage
from fewstep_trellis2.pipeline.spec import (
    FINE,
    KINDS,
    ROLES,
    SHAPE_512,
    SHAPE_1024,
    TEXTURE_512,
    TEXTURE_1024,
    PipelineSpec,
    TexturingSpec,
)
from fewstep_trellis2.structure import StructureStage

from golden.cases import Case, Check, Record, exact, label

BACKBONES: dict[str, tuple[type[Any], ...]] = {
    "structure": (StructureStage,),
    "shape": (ShapeStage, FineShapeStage),
    "texture": (TextureStage,),
}
SHAPE = {"512": (SHAPE_512,), "1024": (SHAPE_1024,), "512 then 1024": (SHAPE_512, SHAPE_1024)}
TEXTURE = {"512": TEXTURE_512, "1024": TEXTURE_1024}
DATA: dict[str, type[Any]] = {
    "ss_flow_img_dit_1_3B_64_bf16": StructureDataConfig,
    "slat_flow_img2shape_dit_1_3B_512_bf16": ShapeDataConfig,
    "slat_flow_img2shape_dit_1_3B_512_bf16_ft1024": FineShapeDataConfig,
}
KEYS = {"min_aesthetic_score": "min_aesthetic", "image_size": "image_size", "max_tokens": "max_tokens"}


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The case of a record of such facts."""
    return [Case(label(root, path), partial(_facts, record))] if {"pipeline_json", "stages"} <= record.keys() else []


def _facts(record: Record) -> list[Check]:
    described, texturing = record["pipeline_json"], record["pipeline_json"]["texturing_pipeline_json"]
    example = {key: value for key, value in described["example"].items() if key != "source"}
    numbers = record["normalisation"]
    example |= {"shape_slat_normalization": numbers["shape"], "tex_slat_normalization": numbers["texture"]}
    spec, fields = PipelineSpec.model_validate(example), PipelineSpec.model_fields
    wanted = described["required_keys"]
    checks = [
        exact("class", PipelineSpec.title == wanted["name"]),
        exact("keys", fields.keys() == {*wanted["args"], *wanted["optional"]}),
        exact("optional", {key: fields[key].default for key in wanted["optional"]} == wanted["optional"]),
        exact("roles", sorted(ROLES) == sorted(described["model_roles"]["image"])),
        exact("texturing class", TexturingSpec.title == texturing["name"]),
        exact("texturing roles", sorted(TexturingSpec.roles) == sorted(texturing["model_roles"])),
        exact("encoder", spec.encoder == ENCODER),
    ]
    for stage, backbones in BACKBONES.items():
        params, demo = spec.sampler(stage).params, described["demo_defaults"][stage]
        checks.append(exact(f"{stage}.demo", all(getattr(params, key) == value for key, value in demo.items())))
        for backbone in backbones:
            config = backbone.Config()
            same = config.teacher_guidance() == spec.sampler(stage).guidance and config.rescale_t == params.rescale_t
            checks.append(exact(f"{backbone.name}.teacher", same))
    for name, way in record["stages"]["types"].items():
        own, most = KINDS[name], str(way["mesh_resolution"]).partition(",")[0]
        found = own.structure, own.shape, own.texture, own.resolution
        listed = way["structure_grid"], SHAPE[way["shape_flow"]], TEXTURE[way["texture_flow"]], int(most)
        checks.append(exact(f"{name}.stages", found == listed))
    checks.append(exact("flows at 1024 pixels", {SHAPE_1024, TEXTURE_1024} == FINE))
    for name, config in DATA.items():
        given, own = record["training"][name]["dataset"], config()
        pairs = [(getattr(own, KEYS[key]), value) for key, value in given.items() if key in KEYS]
        checks.append(exact(f"{name}.data", len(pairs) > 1 and all(ours == value for ours, value in pairs)))
    return checks
