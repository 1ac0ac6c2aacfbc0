"""Cases of exported files: activated Gaussians, and the .ply as a table and as bytes."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from fewstep_shapes3d.export import read_ply, write_ply
from fewstep_shapes3d.export.ply import ply_table
from fewstep_shapes3d.representations import Gaussians
from torch import Tensor

from golden.cases import Case, Check, Record, compare, exact, label, part, tensors_of

TOLERANCE, QUATERNION = 1e-6, 3e-5  # the recorded quaternions went through matrices
FIELDS = ("xyz", "features_dc", "scaling", "rotation", "opacity")
ROTATION = slice(13, 17)


def gaussians_of(record: Record, given: dict[str, Tensor]) -> Gaussians:
    """The recorded raw fields with the recorded settings."""
    args = record["args"]
    return Gaussians(
        *(given[name] for name in FIELDS),
        aabb=tuple(args["aabb"]),
        minimum_kernel_size=args.get("mininum_kernel_size", args.get("minimum_kernel_size", 0.0)),
        scaling_bias=args["scaling_bias"],
        opacity_bias=args["opacity_bias"],
        scaling_activation=args["scaling_activation"],
    )


def _table(name: str, ours: Tensor, theirs: Tensor) -> list[Check]:
    """Columns as numbers; a recorded infinity is a saturated opacity, ours is finite there and large."""
    finite = theirs.isfinite()
    large = bool((ours[~finite] > 10).all()) and bool(ours.isfinite().all())
    plain = torch.where(finite, ours, 0)[:, : ROTATION.start], torch.where(finite, theirs, 0)[:, : ROTATION.start]
    sign = (ours[:, ROTATION] * theirs[:, ROTATION]).sum(1, keepdim=True).sign()
    return [
        compare(f"{name}.table", *plain, TOLERANCE),
        compare(f"{name}.quaternions", ours[:, ROTATION] * sign, theirs[:, ROTATION], QUATERNION),
        exact(f"{name}.saturated", large),
    ]


def _file(name: str, gaussians: Gaussians, theirs: Path, *, turn: bool) -> list[Check]:
    """The header to the letter, the size, and what reading the recorded file gives."""
    with tempfile.TemporaryDirectory() as folder:
        ours = write_ply(gaussians, Path(folder) / "ours.ply", turn=turn).read_bytes()
    recorded = theirs.read_bytes()
    end = recorded.index(b"end_header") + len(b"end_header\n")
    back = read_ply(theirs, turn=turn, minimum_kernel_size=gaussians.minimum_kernel_size)
    agree = (back.rotation * gaussians.rotation).sum(1).abs()
    return [
        exact(f"{name}.header", ours[:end] == recorded[:end]),
        exact(f"{name}.size", len(ours) == len(recorded)),
        compare(f"{name}.read.xyz", back.xyz, gaussians.xyz, TOLERANCE),
        compare(f"{name}.read.scaling", back.scaling, gaussians.scaling, 1e-5),
        compare(f"{name}.read.rotation", agree, torch.ones_like(agree), QUATERNION),
    ]


def run_export(path: Path, record: Record) -> list[Check]:
    """Activated values, then each recorded file."""
    tensors = tensors_of(path)
    gaussians = gaussians_of(record, part(tensors, "input."))
    activated = {f"get_{name}": getattr(gaussians, name) for name in ("xyz", "scaling", "rotation", "opacity")}
    recorded = part(tensors, "act.")
    checks = [compare(f"act.{k}", v, recorded[k], TOLERANCE) for k, v in activated.items() if k in recorded]
    for name, about in record["files"].items():
        turn = about["transform"] is not None
        table = torch.from_numpy(ply_table(gaussians, turn=turn))
        checks += _table(name, table, tensors[f"{name}.table"])
        checks += _file(name, gaussians, path.parent / about["file"], turn=turn)
    return checks


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The case of a record, if it is one of exported Gaussians."""
    if not {"args", "files", "count"} <= record.keys():
        return []
    return [Case(label(root, path), partial(run_export, path, record))]
