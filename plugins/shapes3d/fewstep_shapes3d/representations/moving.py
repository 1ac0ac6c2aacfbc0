"""Representations on another device."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


def moved(thing: R, device: torch.device | str) -> R:
    """The same dataclass with its tensors on ``device``."""
    found: Any = thing
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    changed: R = replace(found, **{k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)})
    return changed
