"""Cases of the encoders: DINOv2's tokens, CLIP's tokens, and the pipeline's picture preparation to the pixel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fewstep_shapes3d.pictures.loading import load_picture
from fewstep_shapes3d.pictures.preprocess import prepare
from fewstep_trellis.conditioning import clip, dino, hub
from fewstep_trellis.conditioning.dino_keys import convert
from PIL import Image
from torch import Tensor

from golden import trellis2_parts
from golden.cases import Case, Check, Record, compare, exact, label, part, tensors_of

Tensors = dict[str, Tensor]
TOLERANCE = 1e-5
GIVEN, WANTED = "_in.png", "_out.png"


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The cases of one record; none if it is of another kind."""
    arguments, inputs = record.get("args"), record.get("inputs")
    if isinstance(arguments, dict) and isinstance(inputs, dict) and {"patch_size", "embed_dim"} <= arguments.keys():
        return [Case(label(root, path, tag), partial(_dino, path, arguments, tag, how)) for tag, how in inputs.items()]
    config = record.get("config")
    if isinstance(config, dict) and {"vocab_size", "max_position_embeddings"} <= config.keys():
        return [Case(label(root, path), partial(_clip, path, config))]
    return []


def preparations(root: Path) -> list[Case]:
    """A case for each pair of pictures below a folder, before and after preparation."""
    pairs = {path: path.with_name(path.name.removesuffix(GIVEN) + WANTED) for path in sorted(root.rglob(f"*{GIVEN}"))}
    return [
        Case(label(root, given).removesuffix("_in"), partial(_way(given.with_name("facts.json")), given, wanted))
        for given, wanted in pairs.items()
        if wanted.is_file()
    ]


def _way(facts: Path) -> Callable[[Path, Path], list[Check]]:
    """TRELLIS.2 prepares pictures in another way; the facts beside them say whose they are."""
    return trellis2_parts.preparation if facts.is_file() and "Trellis2" in facts.read_text() else _preparation


def _preparation(given: Path, wanted: Path) -> list[Check]:
    with Image.open(wanted) as image:
        theirs = np.asarray(image.convert("RGB"))
    ours = np.asarray(prepare(load_picture(given), given.name, theirs.shape[0]))
    return [exact("every pixel", ours.shape == theirs.shape and bool((ours == theirs).all()))]


def _dino(path: Path, arguments: dict[str, Any], tag: str, how: dict[str, Any]) -> list[Check]:
    tensors = tensors_of(path)
    architecture, state = convert(part(tensors, "state."), str(path), arguments["num_heads"])
    model = hub.build(dino.KIND, architecture.config(), state, str(path))
    rule = dino.Interpolation(arguments.get("interpolate_antialias", False), arguments.get("interpolate_offset", 0.1))
    ours = dino.DinoConditioner(model, path.stem, rule)
    pixels = picture(tensors, tag, how)
    images = pixels.float() / 255
    found = {"cond": ours(images), "x_prenorm": ours.prenorm(images)}
    found["mid.tokens"] = ours.embed(dino.normalise(images))
    wanted = {name: tensors[f"{tag}.{name}"] for name in found if f"{tag}.{name}" in tensors}
    checks = [compare(f"{tag}.{name}", found[name], value, TOLERANCE) for name, value in wanted.items()]
    return [exact(f"{tag}: sum of the pixels", int(pixels.long().sum()) == how["checksum"]), *checks]


def picture(tensors: Tensors, tag: str, how: dict[str, Any]) -> Tensor:
    """The input uint8 [B, 3, H, W]: stored, or by the formula of dino/facts.json."""
    if f"{tag}.image_u8" in tensors:
        return tensors[f"{tag}.image_u8"]
    i, c, y, x = np.ogrid[: how["batch"], :3, : how["height"], : how["width"]]
    value = (3 + c + how["k"] + i) * x + (5 + 2 * c + i) * y + ((c + 1 + i) * x * y) // 7 + 11 * c + 29 * i
    return torch.from_numpy((value % 256).astype(np.uint8))


def _clip(path: Path, config: dict[str, Any]) -> list[Check]:
    tensors = tensors_of(path)
    model = hub.build(clip.KIND, config, part(tensors, "state."), str(path))
    ours = clip.ClipConditioner(model, None, path.stem)(tensors["input.ids"].long())
    return [compare("last_hidden_state", ours, tensors["output.last_hidden_state"], TOLERANCE)]
