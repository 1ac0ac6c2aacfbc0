"""Cases of TRELLIS's data sets: which objects, statistics, items with every draw, batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from fewstep_trellis.official.items import packed
from fewstep_trellis.official.published import split_batch
from torch import Tensor

from golden.cases import Case, Check, Record, compare, exact, label, part, tensors_of
from golden.items import Draws, Tensors, drawn, reader

CAMERA_TOLERANCE = 1e-6


def same(what: str, ours: Tensor, theirs: Tensor) -> Check:
    """Bit for bit; cameras within a rounding of the inverse."""
    if what.endswith(("extrinsics", "intrinsics")):
        return compare(what, ours, theirs, CAMERA_TOLERANCE)
    return exact(what, ours.dtype == theirs.dtype and torch.equal(ours, theirs))


def run_set(path: Path, record: Record, name: str, tensors: Tensors) -> list[Check]:
    """A data set: its objects, statistics and items."""
    one = record["datasets"][name]
    chosen, read = reader(record, name, path.parent, tensors)
    checks = [
        exact("instances", [[row.root.name, row.sha256] for row in chosen.rows] == one["instances"]),
        exact("stats", {count.root.name: count.left for count in chosen.counts} == one["stats"]),
    ]
    if "loads" in one:
        checks.append(exact("loads", [int(row.number("num_voxels") or 0) for row in chosen.rows] == one["loads"]))
    for i, sample in enumerate(one["samples"]):
        draws = Draws(sample["seed"])
        found, text = drawn(chosen, read, sample["index"], draws)
        checks.append(exact(f"{i}.draws", draws.log == sample["draws"]))
        checks += [same(f"{i}.{k}", found[k], v) for k, v in part(tensors, f"{name}.{i}.").items()]
        if isinstance(sample["keys"].get("cond"), str):
            checks.append(exact(f"{i}.caption", text == sample["keys"]["cond"]))
    return checks


def run_collate(path: Path, record: Record, name: str, tensors: Tensors) -> list[Check]:
    """A batch of a SLat data set under every recorded split."""
    one = record["datasets"][name]["collate"]
    chosen, read = reader(record, name, path.parent, tensors)
    draws = Draws(one["seed"])
    items = [drawn(chosen, read, index, draws) for index in one["indices"]]
    loads = [len(found["feats"]) for found, _ in items]
    checks = [exact("loads", loads == one["loads"])]
    for key, expected in one["splits"].items():
        groups = split_batch(loads, None if key == "None" else int(key))
        checks.append(exact(f"{key}.groups", groups == expected["groups"]))
        for i, group in enumerate(groups):
            theirs = part(tensors, f"{name}.collate_{key}.{i}.")
            checks += _group(
                [items[place] for place in group], {k: v[i] for k, v in expected.items() if k in SHAPES}, theirs
            )
    return checks


SHAPES = ("layouts", "shape", "cond")


def _group(items: list[tuple[Tensors, str]], expected: Record, theirs: Tensors) -> list[Check]:
    layout, feats = packed([found["coords"] for found, _ in items]), torch.cat([found["feats"] for found, _ in items])
    bounds = layout.cu_seqlens.tolist()
    pictures = torch.stack([found["cond"] for found, _ in items]) if "cond" in items[0][0] else None
    cond = [text for _, text in items] if pictures is None else list(pictures.shape)
    assert layout.coords is not None
    ours = {"coords": torch.cat([layout.index[:, None].int(), layout.coords], 1), "feats": feats}
    if pictures is not None:
        ours["cond_mean"] = pictures.mean((1, 2, 3))
    checks = [exact("layouts", [[a, b] for a, b in pairwise(bounds)] == expected["layouts"])]
    checks += [exact("shape", [layout.batch_size, feats.shape[1]] == expected["shape"])]
    checks += [exact("cond", cond == expected["cond"])]
    return checks + [
        compare(k, ours[k], v, 1e-6) if k == "cond_mean" else same(k, ours[k], v) for k, v in theirs.items()
    ]


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The cases of a record, if it is one of data sets."""
    if not {"datasets", "roots", "names"} <= record.keys():
        return []
    tensors: Tensors = {}

    def run(work: Callable[[Path, Record, str, Tensors], list[Check]], name: str) -> list[Check]:
        if not tensors:
            tensors.update(tensors_of(path))
        return work(path, record, name, tensors)

    sets = record["datasets"]
    found = [Case(label(root, path, name), partial(run, run_set, name)) for name in sets]
    batches = [name for name in sets if "collate" in sets[name]]
    return found + [Case(label(root, path, f"{name}-collate"), partial(run, run_collate, name)) for name in batches]
