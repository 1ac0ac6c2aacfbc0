"""Cases of TRELLIS.2's data sets: which objects, statistics, items with the draw of a picture, batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fewstep_trellis.official.condition import prepared_picture
from fewstep_trellis.official.fits import Fits
from fewstep_trellis.official.latents import read_grid, read_voxels
from fewstep_trellis.official.published import split_batch
from fewstep_trellis.official.selection import chosen
from fewstep_trellis2.dataset.config import ShapeDataConfig, StructureDataConfig, TextureDataConfig, Trellis2Config
from fewstep_trellis2.dataset.roots import MergedRow, Root, merged
from fewstep_trellis2.dataset.sets import (
    ShapeData,
    StructureData,
    TextureData,
    TextureItem,
    Trellis2Dataset,
    condition_pictures,
)
from torch import Tensor

from golden.cases import Case, Check, Record, exact, label, part, tensors_of

Tensors = dict[str, Tensor]
DATA: dict[str, tuple[type[Trellis2Dataset], type[Trellis2Config]]] = {
    "ImageConditionedSparseStructureLatent": (StructureData, StructureDataConfig),
    "ImageConditionedSLatShape": (ShapeData, ShapeDataConfig),
    "ImageConditionedSLatPbr": (TextureData, TextureDataConfig),
}
KEYS = {
    "min_aesthetic_score": "min_aesthetic",
    "image_size": "image_size",
    "max_tokens": "max_tokens",
    "full_pbr": "full_pbr",
    "normalization": "normalisation",
    "pbr_slat_normalization": "normalisation",
    "shape_slat_normalization": "shape_normalisation",
}


def run_data(path: Path, roots: Record, seed: int, name: str, one: Record) -> list[Check]:
    """A data set: its objects, statistics, items, batches."""
    tensors, draws = part(tensors_of(path), f"{name}."), np.random.RandomState(seed)
    cls, config_of = DATA[one["class"]]
    values = {KEYS[key]: value for key, value in one["args"].items() if key in KEYS}
    config = config_of.model_validate({"roots": (path,), **values})
    places = {r: {role: path.parent / place for role, place in folders.items()} for r, folders in roots.items()}
    tables = [(Path(r), merged(Root(r, folders))) for r, folders in places.items()]
    found = chosen(tables, config.filters())
    checks = [
        exact("instances", [row.sha256 for row in found.rows] == one["instances"]),
        exact("stats", {count.root.name: count.left for count in found.counts} == one["stats"]),
    ]
    if "loads" in one:
        loads = [int(row.number(cast(Any, cls).count) or 0) for row in found.rows]
        checks.append(exact("loads", loads == one["loads"]))
    items = []
    for tag, item in one["items"].items():
        row = cast(MergedRow, found.rows[item["index"]])
        ours = _latents(row, config)
        pictures = condition_pictures(row)
        picture = pictures[int(draws.randint(len(pictures)))]
        checks.append(exact(f"{tag}.picture", [picture.name] == item["picture"]))
        ours["cond"] = prepared_picture(picture, config.image_size, 1.0)
        items.append(ours)
        checks += [exact(f"{tag}.{key}", torch.equal(ours[key], v)) for key, v in part(tensors, f"{tag}.").items()]
    for key in one:
        if key.startswith("collate_split"):
            checks += _batches(
                items, None if key.endswith("None") else 2, part(tensors, f"{key.replace('_split', '')}.")
            )
    return checks


def _latents(row: MergedRow, config: Any) -> Tensors:
    if isinstance(config, StructureDataConfig):
        return {"x_0": read_grid(row.file("ss_latent"), "z", Fits(), config.normalisation)}
    if isinstance(config, TextureDataConfig):
        found = TextureData.item(row, Fits(), cast(Any, config.normalisation), cast(Any, config.shape_normalisation))
        assert isinstance(found, TextureItem)
        assert found.coords is not None
        assert found.shape is not None
        return {
            "x_0": found.latents,
            "x_0.coords": batched(found.coords),
            "concat_cond": found.shape,
            "concat_cond.coords": batched(found.coords),
        }
    coords, feats = read_voxels(row.file("shape_latent"), "", Fits(), cast(Any, config.normalisation))
    return {"coords": coords, "feats": feats}


def batched(coords: Tensor, index: int = 0) -> Tensor:
    """[N, 4]: the sample in front."""
    return torch.cat([torch.full_like(coords[:, :1], index), coords], 1)


def _batches(items: list[Tensors], groups: int | None, theirs: Tensors) -> list[Check]:
    rows = [len(item.get("feats", item.get("x_0"))) for item in items]  # type: ignore[arg-type]
    checks = []
    for number, group in enumerate(split_batch(rows, groups)):
        for key in ("x_0", "concat_cond"):
            if f"{number}.{key}" not in theirs:
                continue
            own = [items[i].get(key, items[i].get("feats")) for i in group]
            where = [items[i]["coords"] if "coords" in items[i] else items[i]["x_0.coords"][:, 1:] for i in group]
            coords = torch.cat([batched(one, i) for i, one in enumerate(where)])
            checks.append(exact(f"{number}.{key}", torch.equal(torch.cat(cast(Any, own)), theirs[f"{number}.{key}"])))
            checks.append(exact(f"{number}.{key}.coords", torch.equal(coords, theirs[f"{number}.{key}.coords"])))
    return checks


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The cases of a record, if it is one of TRELLIS.2's data sets."""
    if not {"roots_json", "cases"} <= record.keys():
        return []
    work = partial(run_data, path, record["roots_json"], record["numpy_seed_before_item0"])
    return [Case(label(root, path, name), partial(work, name, one)) for name, one in record["cases"].items()]
