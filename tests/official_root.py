"""A small data root in TRELLIS's own layout, written by a test, and stand-ins for what reads it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fewstep.core.backbone import Backbone

SS, SLAT = "ss_enc_conv3d_16l8_fp16", "dinov2_vitl14_reg_slat_enc_swin8_B_64l8_fp16"
CHANNELS, VIEWS = 8, 3


def sha(index: int, name: str = "object") -> str:
    """An identifier as long as the real ones."""
    return f"{name}{index:03d}".rjust(64, "0")


def row_of(index: int, name: str) -> dict[str, str]:
    """The table's row of an object; ``make_root`` changes cells by index."""
    captions = json.dumps([f"thing {index}", f"object number {index}"])
    flags = dict.fromkeys(("cond_rendered", f"ss_latent_{SS}", f"latent_{SLAT}", "voxelized"), "True")
    score, voxels = str(5 + index % 3), str(10 + 7 * index)
    return {"sha256": sha(index, name), "aesthetic_score": score, "captions": captions, "num_voxels": voxels, **flags}


def make_root(
    folder: Path,
    count: int = 6,
    *,
    name: str = "object",
    cells: dict[int, dict[str, str]] | None = None,
    side: int = 8,
    coarse: int = 4,
) -> Path:
    """Objects with both kinds of latents and three views each; object i has 10 + 7 i voxels of a grid of ``side``, and
    structure latents of ``coarse`` cells on a side."""
    rows = [row_of(i, name) | (cells or {}).get(i, {}) for i in range(count)]
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for i in range(count):
        _latents(folder, i, name, side, coarse)
        _views(folder / "renders_cond" / sha(i, name), i)
    return folder


def nano_root(folder: Path, count: int = 6) -> Path:
    """Objects that fit the shipped nano models."""
    return make_root(folder, count, side=32, coarse=8)


def _latents(folder: Path, i: int, name: str, side: int, coarse: int) -> None:
    random = np.random.default_rng(i)
    for place, arrays in (
        (
            folder / "ss_latents" / SS,
            {"mean": random.normal(size=(CHANNELS, coarse, coarse, coarse)).astype(np.float32)},
        ),
        (folder / "latents" / SLAT, voxels_of(random, 10 + 7 * i, side)),
    ):
        place.mkdir(parents=True, exist_ok=True)
        np.savez(place / f"{sha(i, name)}.npz", **arrays)  # type: ignore[arg-type]


def voxels_of(random: np.random.Generator, count: int, side: int) -> dict[str, Any]:
    """Distinct voxels in random order with their latents."""
    cells = random.permutation(side**3)[:count]
    coords = np.stack(np.unravel_index(cells, (side,) * 3), 1).astype(np.uint8)
    return {"coords": coords, "feats": random.normal(size=(count, CHANNELS)).astype(np.float32)}


def _views(folder: Path, i: int) -> None:
    folder.mkdir(parents=True)
    for view in range(VIEWS):
        pixels = np.zeros((32, 32, 4), np.uint8)
        pixels[4 + i % 8 : 24, 6:28] = (40 * i % 256, 80 * view, 200, 255)
        Image.fromarray(pixels).save(folder / f"{view:03d}.png")
    frames = [{"file_path": f"{view:03d}.png"} for view in range(VIEWS)]
    (folder / "transforms.json").write_text(json.dumps({"frames": frames}))


class Pixels(nn.Module):
    """Encodes a picture as its mean colours by half: tokens [B, 2, 3]. Counts what it is given."""

    name, channels = "pixels", 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return torch.stack([half.mean((2, 3)) for half in images.chunk(2, 2)], 1) * self.scale

    def negative(self, batch: int) -> None:
        return None


class Letters(nn.Module):
    """Encodes a text as its length and its last letter: tokens [B, 1, 3]."""

    name, channels = "letters", 3

    def encode(self, texts: list[str]) -> Tensor:
        return torch.tensor([[[len(text), ord((text or "?")[-1]), 1.0]] for text in texts])

    def negative(self, batch: int) -> Tensor:
        return self.encode([""]).expand(batch, -1, -1)


class Stub(Backbone):
    """A teacher's network as far as data sets look at it."""

    provides: ClassVar[frozenset[str]] = frozenset({"dense", "packed"})

    def __init__(self, normalisation: Any = None, **arguments: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.model: Any = SimpleNamespace(args={"in_channels": CHANNELS, "cond_channels": 3, **arguments})
        self.normalisation = normalisation
