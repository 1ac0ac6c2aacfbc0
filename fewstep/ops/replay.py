"""CUDA graphs in sampling: a call of the same shapes is recorded once and then launched as a whole.

At batch 1 a large flow's hundreds of kernels are shorter than the time that Python needs to launch them. A recorded
graph launches them in one call, on the addresses that were recorded: so it serves fixed shapes only, and weights that
stay where they are. A network opts in by calling :func:`replay`; the switch is ``graphs`` of ``fewstep.ops.economy``.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fewstep.ops.economy import on
from fewstep.ops.tangents import in_transform

T = TypeVar("T")
Function = Callable[..., Tensor]
AFTER = 2  # calls that run as they are: they compile, choose tiles, and fill what is kept between calls
KEPT, COUNTED = 4, 64  # graphs of a module, each of which holds the memory of a call; kinds of calls that are counted
AGREE = 1e-2  # relative error of a recording, far above what other algorithms do in half precision
_SAMPLING: ContextVar[bool] = ContextVar("sampling", default=False)
_HELD: ContextVar[list[object] | None] = ContextVar("held", default=None)


@contextmanager
def sampling() -> Iterator[None]:
    """No gradients, and calls may be recorded; also a decorator."""
    token = _SAMPLING.set(True)
    try:
        with torch.no_grad():
            yield
    finally:
        _SAMPLING.reset(token)


def hold(value: T) -> T:
    """``value``, which lives as long as the graph that is being recorded, if one is: for what a cache may drop."""
    held = _HELD.get()
    if held is not None:
        held.append(value)
    return value


class Graph:
    """A recorded call.

    Args:
        function: of the tensors, without a look at their values from the host.
        tensors: an example; copies of it are the graph's own input.
    """

    def __init__(self, function: Function, tensors: tuple[Tensor, ...]) -> None:
        with torch.inference_mode(False):
            self.inputs = tuple(x.clone() for x in tensors)
        self.held: list[object] = []
        token = _HELD.set(self.held)
        try:
            self.launch, self.output = record(lambda: function(*self.inputs))
        finally:
            _HELD.reset(token)

    def __call__(self, tensors: tuple[Tensor, ...]) -> Tensor:
        for mine, given in zip(self.inputs, tensors, strict=True):
            mine.copy_(given)
        self.launch()
        return self.output.clone()


def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What launches the recorded call again, and where its output lies."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return graph.replay, output


class Recordings:
    """The graphs of one module, by what their calls look like; the least recently used one is dropped."""

    def __init__(self) -> None:
        self.calls: OrderedDict[Hashable, int] = OrderedDict()
        self.graphs: OrderedDict[Hashable, Graph | None] = OrderedDict()

    def __call__(self, key: Hashable, function: Function, tensors: tuple[Tensor, ...]) -> Tensor | None:
        """The output; None where the call has to run as it is."""
        if key not in self.graphs:
            if self._counted(key) <= AFTER:
                return None
            self.graphs[key] = _recorded(function, tensors)
            _shorten(self.graphs, KEPT)
        self.graphs.move_to_end(key)
        graph = self.graphs[key]
        return None if graph is None else graph(tensors)

    def _counted(self, key: Hashable) -> int:
        """Calls of this kind, this one included."""
        self.calls[key] = count = self.calls.pop(key, 0) + 1
        _shorten(self.calls, COUNTED)
        return count


def _shorten(kept: OrderedDict[Hashable, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)


_MODULES: WeakKeyDictionary[nn.Module, Recordings] = WeakKeyDictionary()


def replay(module: nn.Module, function: Function, *tensors: Tensor, key: Hashable = ()) -> Tensor | None:
    """The output of ``function(*tensors)`` by a recorded graph; None where the caller has to call it.

    Args:
        module: whose parameters and buffers the function reads; its recordings live as long as it does.
        function: depends on ``tensors``, ``key`` and the module alone, and never waits for the device.
        tensors: inputs; a graph serves one set of shapes and types.
        key: whatever else changes what the function does.
    """
    if not recordable(*tensors):
        return None
    shapes = tuple((x.shape, x.dtype, x.device) for x in tensors)
    places = tuple(p.data_ptr() for parts in (module.parameters(), module.buffers()) for p in parts)
    return _MODULES.setdefault(module, Recordings())((key, shapes, places), function, tensors)


def replayed(module: nn.Module, function: Function, *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, by a recorded graph where there is one."""
    found = replay(module, function, *tensors)
    return function(*tensors) if found is None else found


def recordable(*tensors: Tensor) -> bool:
    """Whether a call with these tensors may be recorded here and now.

    Under autocast it may not: the casts of the weights that autocast keeps are gone after it.
    """
    if not _SAMPLING.get() or not on("graphs", cuda=True) or not free_gpu(tensors):
        return False
    busy = torch.is_grad_enabled() or torch.is_autocast_enabled("cuda") or torch.compiler.is_compiling()
    return not (busy or in_transform())


def free_gpu(tensors: Sequence[Tensor]) -> bool:
    """Whether all of them are on a GPU on which nobody records anything yet."""
    return all(x.is_cuda for x in tensors) and not torch.cuda.is_current_stream_capturing()


def _recorded(function: Function, tensors: tuple[Tensor, ...]) -> Graph | None:
    """The graph of a call, once it has given what the call itself gives; None, with a warning, where it does not."""
    try:
        graph = Graph(function, tensors)
        wanted = function(*tensors).float()
        error = float((graph(tensors) - wanted).norm() / wanted.norm().clamp(min=1e-30))
    except RuntimeError as reason:
        warnings.warn(f"sampling goes on without a CUDA graph, which cannot be recorded: {reason}", stacklevel=4)
        return None
    if error <= AGREE:
        return graph
    warnings.warn(f"sampling goes on without a CUDA graph, whose output is off by {error:.1e}", stacklevel=4)
    return None
