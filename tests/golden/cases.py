"""What a golden case is, how a folder's files become cases, and how two tensors are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep_trellis.weightfiles import read_tensors
from torch import Tensor

from fewstep.errors import invalid

Record = dict[str, Any]
CAMERAS = "transforms.json"  # in the data roots of data set cases: no record


@dataclass(frozen=True)
class Check:
    """One compared quantity: the largest |ours - theirs| / max |theirs| and what is allowed."""

    what: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    @property
    def strain(self) -> float:
        """Error in units of the tolerance; what cannot be compared is infinite."""
        if self.tolerance == 0:
            return 0.0 if self.error == 0 else math.inf
        return self.error / self.tolerance


@dataclass(frozen=True)
class Case:
    """A named case: either ``run`` makes its checks, or ``missing`` says what is not supported yet."""

    name: str
    run: Callable[[], list[Check]] | None = None
    missing: str = ""


def relative(ours: Tensor | float, theirs: Tensor | float) -> float:
    """The largest absolute difference over the largest absolute reference value; infinite for unlike shapes or NaN."""
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (ours, theirs))
    if a.shape != b.shape:
        return math.inf
    if b.numel() == 0:
        return 0.0
    difference, scale = float((a - b).abs().max()), float(b.abs().max())
    error = difference / scale if scale > 0 else difference
    return math.inf if math.isnan(error) else error


def compare(what: str, ours: Tensor | float, theirs: Tensor | float, tolerance: float) -> Check:
    """A check of values."""
    return Check(what, relative(ours, theirs), tolerance)


def exact(what: str, same: bool) -> Check:
    """A check that allows no difference."""
    return Check(what, 0.0 if same else math.inf, 0.0)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def tensors_of(record: Path) -> dict[str, Tensor]:
    """The tensors that belong to a json record. Raises FewstepError when they cannot be read."""
    return read_tensors(record.with_suffix(".safetensors"))


def records(root: Path) -> Iterator[tuple[Path, Record]]:
    """Every json object below a folder. Raises FewstepError for one that is not json."""
    for path in sorted(path for path in root.rglob("*.json") if path.name != CAMERAS):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise invalid("golden record", str(path), f"json ({error})") from error
        if isinstance(found, dict):
            yield path, found


def label(root: Path, path: Path, *more: str) -> str:
    """The name of a case: its place below the folder, without suffix."""
    return "/".join([path.relative_to(root).with_suffix("").as_posix(), *more])


def of_trellis2(record: Record) -> bool:
    """Whether a record is of a flow of TRELLIS.2: the classes have TRELLIS's names, the outputs have others."""
    return bool({"x_t", "feats_t"} & set(record.get("outputs", ())))
