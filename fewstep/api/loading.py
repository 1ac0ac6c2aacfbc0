"""``fewstep.load``: a student by folder, shipped name or hub name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from pydantic import Field, create_model

from fewstep.api.students import Student, on_this_machine
from fewstep.config.base import Strict, validate
from fewstep.config.recorded import WRITTEN
from fewstep.engine.device import pick_device
from fewstep.engine.export import StudentInfo, load_student, read_info
from fewstep.engine.hub import fetched
from fewstep.errors import FewstepError, invalid, nearest
from fewstep.plugins.registry import Entry, registry


class InFolder(Protocol):
    """Anything whose folder holds a student: a ``Run``, a ``Student``."""

    @property
    def folder(self) -> Path: ...


def load(
    student: Path | str | InFolder,
    *,
    device: str | torch.device = "auto",
    dataset: str | None = None,
    data: Mapping[str, Any] = MappingProxyType({}),
) -> Student:
    """A student, ready to sample.

    Args:
        student: a run or its folder, a student's folder, a shipped student's name ("mdt-vd", "slat-mdt-vd", or with its
            backbone "trellis/mdt-vd"), or a hub repository ("owner/name", or "owner/name/folder").
        device: "auto" is CUDA if available, else the CPU.
        dataset: registered data set that the prompts come from; by default the training data set.
        data: config keys of that data set; those of the training are kept if it is the same data set.

    Raises:
        FewstepError: for a student that is missing, damaged, or of a backbone that is not installed; and, before any
            weights load, for a data set that cannot be read.
    """
    if not isinstance(student, Path | str) and not hasattr(student, "folder"):
        raise invalid("student", student, "a run, a folder, a shipped student's name or a name of the hub")
    folder = _find(str(student)) if isinstance(student, Path | str) else student.folder
    place = pick_device(str(device), "--device")
    chosen = _data_of(read_info(folder), dataset, data) if dataset or data else None
    return Student(folder, *load_student(folder), place, chosen)


class SampleConfig(Strict):
    """The keys of ``fewstep sample``; ``data`` has the config class of the data set."""

    data: Any = None


def _data_of(info: StudentInfo, dataset: str | None, keys: Mapping[str, Any]) -> tuple[Entry, Any]:
    entry = registry().get("dataset", dataset or info.dataset)
    recorded = info.config.get("data", {}) if entry.name == info.dataset else {}
    kept = {name: value for name, value in recorded.items() if name not in keys}
    model = entry.load_config()
    typed = create_model("Sample", __base__=SampleConfig, data=(model, Field(default_factory=model)))
    config = validate(typed, {"data": {**on_this_machine(entry, kept), **keys}}).data
    entry.load().check_config(config)
    return entry, config


def _find(name: str) -> Path:
    if not name.strip():
        raise FewstepError(f"student: got {name!r}; accepted: a folder or a name")
    if os.path.exists(name):  # unlike Path.exists, it takes any text
        return Path(name)
    shipped = _shipped(name)
    if len(shipped) == 1:
        return next(iter(shipped.values()))
    if shipped:
        raise FewstepError(f"student {name!r}: several backbones ship one; accepted: {', '.join(sorted(shipped))}")
    parts = name.split("/")
    if len(parts) >= 2 and all(parts) and not name.startswith((".", "~")):
        return fetched(name)
    names = sorted(_shipped())
    hint = nearest(name, names)
    raise FewstepError(
        f"student {name!r}: no such folder; accepted: {WRITTEN}, owner/name on the hub, or a shipped student "
        f"({', '.join(names)})" + (f"; did you mean {hint!r}?" if hint else "")
    )


def _shipped(name: str | None = None) -> dict[str, Path]:
    """Shipped students as "backbone/name"; with ``name``, those that it may stand for."""
    shipped: dict[str, Path] = {}
    for entry in registry().entries("backbone"):
        try:
            students = entry.load().students()
        except FewstepError:  # a plugin whose packages are missing
            continue
        shipped.update({f"{entry.name}/{method}": folder for method, folder in students.items()})
    if name is None:
        return shipped
    exact = {key: path for key, path in shipped.items() if name in (key, path.name)}  # folder names are unique
    return exact or {key: path for key, path in shipped.items() if name == key.partition("/")[2]}
