"""A pass on torch's meta device, whose tensors have no values, to count the memory that it would take.

Times and the layout of packed samples stay real, on the CPU, since what is computed may depend on them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # documented, in "Extending PyTorch", despite its underscore

from fewstep.ops import carries_tangent

MATRIX = {
    F.linear,
    F.conv2d,
    F.conv3d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.addmm,
    torch.bmm,
    torch.einsum,
}
MATRIX |= {Tensor.matmul, Tensor.__matmul__, Tensor.bmm}


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results, including those in lists and tuples."""
    for value in values if isinstance(values, list | tuple) else (values,):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


class Live(TorchDispatchMode):
    """Counts the bytes of the meta tensors that are made inside, forward and backward.

    Attributes:
        now, peak: bytes that are alive now, and the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(x.is_meta for x in tensors(args)):
            args = [_meta(x) for x in args]
            existing = {id(x.untyped_storage()) for x in tensors(args)}  # a view of a weight takes no memory
        else:
            existing = set()
        out = func(*args, **(kwargs or {}))
        for x in tensors(out):
            storage = x.untyped_storage()
            if x.is_meta and id(storage) not in self._known and id(storage) not in existing:
                self._known.add(id(storage))
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _meta(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_meta, value))
    return value.to("meta") if isinstance(value, Tensor) else value


class Lowered(TorchFunctionMode):
    """Autocast, which torch lacks for meta tensors, and fused attention as on a real device.

    Args:
        dtype: of matrix products; None for no autocast.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in MATRIX and self.dtype is not None:
            args = [_cast(x, self.dtype) for x in args]
        if func is F.scaled_dot_product_attention and not carries_tangent(*args[:3]):
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def lowered(dtype: torch.dtype | None) -> Iterator[None]:
    """``Lowered`` inside every module, also where activation checkpointing calls it again in the backward pass, in
    which a mode entered outside would not be active."""
    mode, depth = Lowered(dtype), 0

    def enter(*_: Any) -> None:
        nonlocal depth
        if depth == 0:
            mode.__enter__()  # type: ignore[no-untyped-call]
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    fits = isinstance(value, Tensor) and value.is_meta and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if fits else value


def size(parameters: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(x.numel() * x.element_size() for x in parameters)
