"""Where a run computes and in which precision."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.layout import Layout
from fewstep.errors import FewstepError, invalid


def pick_device(name: str, key: str = "train.device") -> torch.device:
    """The torch device of this name; "auto" is CUDA where there is one. ``key`` names it in the error.

    Raises:
        FewstepError: for a name that torch does not know or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise invalid(key, name, f"auto, cpu, or a device of this machine ({_first(error)})") from None
    return device


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of ``train.precision``; none for fp32.

    Its weight cache is off: a weight that is cast under ``no_grad`` (a finite difference, a tangent, a target) would be
    used again where a graph is recorded, and get no gradient on older versions of torch.

    Raises:
        FewstepError: for fp16 off CUDA, where there is no gradient scaling.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "fp16" and device.type != "cuda":
        raise FewstepError(f"train.precision: got 'fp16' on {device.type}; accepted there: fp32, bf16")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype, cache_enabled=False)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``. A layout that is there already stays the same object, with its cache."""
    return Batch(batch.x0.to(device), _moved(batch.layout, device), batch.cond.to(device))


def _moved(layout: Layout, device: torch.device) -> Layout:
    """A layout is a dataclass whose constructor arguments may be tensors; the rest it derives itself."""
    if not dataclasses.is_dataclass(layout):
        return layout
    values = {f.name: getattr(layout, f.name) for f in dataclasses.fields(layout) if f.init}
    tensors = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    moved = any(tensor is not values[name] for name, tensor in tensors.items())
    return dataclasses.replace(layout, **tensors) if moved else layout


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
