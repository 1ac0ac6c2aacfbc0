"""Where a run computes and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import first_line, invalid


def pick_device(name: str, key: str = "train.device") -> torch.device:
    """The torch device of this name; "auto" is CUDA if available, else the CPU. ``key`` names it in the error.

    Raises:
        FewstepError: for a name that torch does not know or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise invalid(key, name, f"auto, cpu, or a device of this machine ({first_line(error)})") from None
    return device


def emulates_bf16(device: torch.device) -> bool:
    """Whether this is a CPU whose features Linux lists without any for bf16."""
    try:
        return device.type == "cpu" and "bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of ``train.precision``; none for fp32.

    Its weight cache is off: a weight that was cast under ``no_grad`` (for a finite difference, a tangent, a target)
    would be reused where a graph is recorded, and get no gradient in older versions of torch.

    Raises:
        FewstepError: for fp16 off CUDA, where there is no gradient scaling.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "fp16" and device.type != "cuda":
        raise invalid("train.precision", precision, f"fp32 or bf16 on {device.type}")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype, cache_enabled=False)
