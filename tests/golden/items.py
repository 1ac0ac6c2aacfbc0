"""How an item of a recorded data set is read: our config for the record, the reference's draws, its failures."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.condition import prepared_picture
from fewstep_trellis.official.config import LatentsConfig, OfficialConfig, StructureConfig
from fewstep_trellis.official.files import ItemError
from fewstep_trellis.official.items import Item, read_item
from fewstep_trellis.official.selection import Filter, Selection, at_least, at_most, has, select
from fewstep_trellis.official.table import Row
from fewstep_trellis.official.vae import image_features, render_view, surface_grid
from fewstep_trellis.shipped import ASSETS
from torch import Tensor

from fewstep.config.base import read_toml
from golden.cases import Record

Tensors = dict[str, Tensor]
BOUND = re.compile(r"(Aesthetic score|Num voxels) [<>]= ([\d.]+)")
LATENTS: dict[str, type[OfficialConfig]] = {"SparseStructureLatent": StructureConfig, "SLat": LatentsConfig}
TRIES = 1000
PRESET = ASSETS.parent / "presets/mdt-dist/slat.toml"


class Draws:
    """numpy's global draws of the reference, with the log that it kept of them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.RandomState(seed)
        self.log: list[list[Any]] = []

    def __call__(self, count: int) -> int:
        self.log.append(["randint", [count], int(self.random.randint(count))])
        return int(self.log[-1][2])

    def another(self, count: int) -> int:
        """The index that is drawn in place of an item that failed."""
        self.log.append(["randint", [0, count], int(self.random.randint(0, count))])
        return int(self.log[-1][2])

    def opened(self, path: Path) -> None:
        """A picture was opened."""
        self.log.append(["open", path.as_posix()])

    def chose(self, text: str) -> None:
        """The last draw was one among texts."""
        self.log[-1] = ["choice", self.log[-1][1][0], text]


Read = Callable[[Row, Draws], tuple[Tensors, str]]


def official() -> Normalisation:
    """The normalisation of all official SLat configs."""
    return Normalisation(**read_toml(PRESET)["backbone"]["normalisation"])


def bounds_of(one: Record) -> dict[str, float]:
    """The bounds that a data set's statistics name."""
    found = {name: float(value) for stats in one["stats"].values() for name, value in BOUND.findall(" ".join(stats))}
    return {"min_aesthetic": found.get("Aesthetic score", 0.0), "max_voxels": found.get("Num voxels", 32768)}


def config_of(record: Record, name: str, folder: Path, norm: Normalisation | None) -> OfficialConfig | None:
    """Our config of a recorded data set of latents; None for one of another stage."""
    one = record["datasets"][name]
    kind = re.fullmatch(r"(Image|Text)Conditioned(SparseStructureLatent|SLat)", one["cls"])
    if kind is None:
        return None
    slat, bounds = kind[2] == "SLat", bounds_of(one)
    values: dict[str, Any] = {
        "roots": tuple(folder / root for root in one["stats"]),
        "condition": kind[1].lower(),
        "min_aesthetic": bounds["min_aesthetic"],
        "latent_model": record["names"]["latent_model" if slat else "ss_latent_model"],
        "normalisation": norm or ("stored" if slat else None),
        "image_size": _size(record, one),
    }
    return LATENTS[kind[2]](**values, **({"max_voxels": int(bounds["max_voxels"])} if slat else {}))


def _size(record: Record, one: Record) -> int:
    shapes = (s["keys"].get("cond", s["keys"].get("image")) for s in one["samples"])
    return next((shape[1][-1] for shape in shapes if isinstance(shape, list)), record["image_size"])


def _vae_filters(record: Record, one: Record) -> list[Filter]:
    bounds = bounds_of(one)
    score = Filter(
        f"Aesthetic score >= {bounds['min_aesthetic']}", at_least("aesthetic_score", bounds["min_aesthetic"])
    )
    if one["cls"] == "SparseStructure":
        return [Filter("Voxelized", has("voxelized")), score]
    most = int(bounds["max_voxels"])
    features = has(f"feature_{record['names']['feature_model']}")
    return [Filter("With features", features), score, Filter(f"Num voxels <= {most}", at_most("num_voxels", most))]


def conditioned(item: Item, config: OfficialConfig, draws: Draws) -> tuple[Tensors, str]:
    """The recorded tensors of an item, and its caption or nothing; notes what is opened or chosen."""
    found = {"x_0": item.latents} if item.coords is None else {"coords": item.coords, "feats": item.latents}
    if item.caption is not None:
        draws.chose(item.caption)
        return found, item.caption
    assert item.picture is not None
    draws.opened(item.picture.relative_to(item.picture.parents[2]))
    return {**found, "cond": prepared_picture(item.picture, config.image_size)}, ""


def normalisation_of(record: Record, name: str, folder: Path, tensors: Tensors) -> Normalisation | None:
    """What the latents of a recorded data set were normalised by. Where the record does not say, either as stored or by
    the official numbers, whichever its first latents show."""
    one = record["datasets"][name]
    if "normalization" in one:
        return Normalisation(**one["normalization"])
    first = tensors.get(f"{name}.0.feats")
    config = config_of(record, name, folder, None)
    if first is None or not isinstance(config, LatentsConfig) or first.shape[1] != len(official().mean):
        return None
    draws = Draws(one["samples"][0]["seed"])
    found, _ = drawn(*_latents(config, None), one["samples"][0]["index"], draws)
    return None if torch.equal(found["feats"], first) else official()


def _latents(config: OfficialConfig, norm: Normalisation | None) -> tuple[Selection, Read]:
    chosen = select(config.roots, config.filters())
    return chosen, lambda row, draws: conditioned(read_item(row, config, norm, draws), config, draws)


def reader(record: Record, name: str, folder: Path, tensors: Tensors) -> tuple[Selection, Read]:
    """The objects of a recorded data set, and how one of its items is read."""
    one, norm = record["datasets"][name], normalisation_of(record, name, folder, tensors)
    config = config_of(record, name, folder, norm)
    if config is not None:
        return _latents(config, norm)
    chosen = select([folder / root for root in one["stats"]], _vae_filters(record, one))
    if one["cls"] == "SparseStructure":
        side = one["samples"][0]["keys"]["ss"][1][-1] if one["samples"] else 64
        return chosen, lambda row, draws: ({"ss_coords": surface_grid(row, side)[0].nonzero().int()}, "")
    cells = int(name.rpartition("_")[2]) if name.rpartition("_")[2].isdigit() else 64
    return chosen, partial(_render, record["names"]["feature_model"], cells, _size(record, one))


def _render(model: str, cells: int, size: int, row: Row, draws: Draws) -> tuple[Tensors, str]:
    view = render_view(row, size, draws)
    draws.opened(view.path.relative_to(view.path.parents[2]))
    coords, feats = image_features(row, model, cells)
    named = {key: getattr(view, key) for key in ("image", "alpha", "extrinsics", "intrinsics")}
    return {**named, "coords": coords, "feats": feats}, ""


def drawn(chosen: Selection, read: Read, index: int, draws: Draws) -> tuple[Tensors, str]:
    """An item as the reference returns it: where it fails, that of another index.

    Raises:
        ValueError: an index beyond our data set, which then has fewer objects, or nothing that can be read.
    """
    for _ in range(TRIES):
        if index >= len(chosen.rows):
            break
        try:
            return read(chosen.rows[index], draws)
        except ItemError:
            index = draws.another(len(chosen.rows))
    raise ValueError(f"no item {index} among {len(chosen.rows)}")
