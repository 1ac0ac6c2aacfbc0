"""Whether a Triton kernel can serve a call, and if not, why. Does not import Triton."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, wraps
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.func import debug_unwrap

from fewstep.errors import install
from fewstep.ops.table import forced

P = ParamSpec("P")
R = TypeVar("R")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
CPU = "needs a GPU"
LEAST = (8, 0)  # compute capability of asynchronous copies and bfloat16 matrix instructions


@lru_cache(maxsize=1)
def installed() -> bool:
    """Whether Triton is installed, without importing it."""
    return find_spec("triton") is not None


@lru_cache(maxsize=1)
def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels on the CPU (TRITON_INTERPRET=1), which is for tests.

    Read once, as Triton itself reads it when a kernel is declared.
    """
    return os.environ.get("TRITON_INTERPRET", "") in ("1", "true", "on", "yes")


@lru_cache(maxsize=8)
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def reason(*tensors: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS) -> str | None:
    """None if Triton can work on these tensors; otherwise the reason why not.

    Args:
        tensors: of one device and one type.
        dtypes: the types that the kernel supports.
    """
    first = tensors[0]
    if not installed():
        return f"Triton is not installed ({install('kernels')})"
    if not first.is_cuda and (why := _off_gpu(first)):
        return why
    device, dtype = first.device, first.dtype
    for x in tensors:  # plain loops: this runs at every call
        if x.device != device:
            return f"tensors on several devices ({', '.join(sorted({str(x.device) for x in tensors}))})"
    if first.is_cuda and _capability(device.index or 0) < LEAST:
        return "GPU older than compute capability 8.0"
    for x in tensors:
        if x.dtype != dtype:
            return f"types differ ({', '.join(str(x.dtype) for x in tensors)})"
    if dtype not in dtypes:
        return f"type {dtype} (it has {', '.join(str(d).removeprefix('torch.') for d in dtypes)})"
    return None


def _off_gpu(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"tensors on {x.device.type}"
    if interpreted() and forced() == "triton":
        return None
    return CPU


def batched(*tensors: Tensor) -> bool:
    """Whether ``torch.func.vmap``, at any nesting level, hides an axis of one of the tensors."""
    return any(debug_unwrap(x).dim() != x.dim() for x in tensors)


def nested(*tensors: Tensor) -> str | None:
    """Why a call inside ``torch.func`` is left to other kernels, or None: these serve a single level of grad or jvp."""
    if batched(*tensors):
        return "within torch.func.vmap"
    for x in tensors:
        inner = debug_unwrap(x, recurse=False)
        if debug_unwrap(inner, recurse=False) is not inner:
            return "nested torch.func transforms"
    return None


def upcast(x: Tensor) -> bool:
    """Whether operands are converted to float32 first: the interpreter multiplies bfloat16 bit patterns as integers."""
    return interpreted() and x.dtype == torch.bfloat16


def precision(x: Tensor) -> str:
    """Triton's ``input_precision`` for this type: "ieee", or "tf32" for float32 where torch allows it."""
    relaxed = x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 and x.device.type == "cuda"
    return "tf32" if relaxed else "ieee"


def on_its_device(launch: Callable[P, R]) -> Callable[P, R]:
    """Launch on the GPU of the first argument, a tensor. Triton itself launches on the current device."""
    if torch.cuda.device_count() < 2:
        return launch

    @wraps(launch)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        cuda = isinstance(first, Tensor) and first.is_cuda
        with torch.cuda.device(first.device) if cuda else nullcontext():  # type: ignore[attr-defined]
            return launch(*args, **kwargs)

    return run
