"""The torch ops of a kernel: what a compiled graph holds of it.

There are four: its value, its gradients, value and tangent together, and the gradients of a tangent. The text of a call
(:mod:`fewstep.ops.wire`) is "arguments|marks|..."; its tensors are those of the arguments, then the others in the order
of the marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.ops import graphs
from fewstep.ops.launches import Call, Launches, Tensors
from fewstep.ops.wire import count, read, spread

LIBRARY = torch.library.Library("fewstep", "FRAGMENT")
SCHEMA = "(str spec, Tensor[] tensors, SymInt[] ints, float[] floats) -> Tensor[]"
TAGS = tuple(getattr(torch.Tag, name) for name in ("pt2_compliant_tag", "cudagraph_unsafe") if hasattr(torch.Tag, name))
Part = Callable[[Call, list[Tensor], Sequence[str]], Tensors]


with torch.inference_mode(False):
    KEYS = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


@contextmanager
def _afresh() -> Iterator[None]:
    """As outside of every op: its implementation runs below autograd, which a part may want; off until asked for."""
    with torch._C._ForceDispatchKeyGuard(*KEYS), torch.no_grad():
        yield


def _own(found: Tensors, inputs: Tensors) -> list[Tensor]:
    """Contiguous, in memory, and not that of an input: what a torch op promises of its results."""
    taken = {x.untyped_storage()._cdata for x in inputs}
    return [_fresh(x.detach(), taken) for x in found]


def _fresh(x: Tensor, taken: set[int]) -> Tensor:
    if x._is_zerotensor():  # what autograd makes of a derivative that vanishes: no memory behind it
        return x.new_zeros(x.shape)
    return x.clone(memory_format=torch.contiguous_format) if x.untyped_storage()._cdata in taken else x.contiguous()


def _marked(values: Sequence[Any], marks: str) -> list[Any]:
    return [v for v, mark in zip(values, marks, strict=True) if mark == "1"]


class Node:
    """A kernel as torch ops ``fewstep::<name>``, ``<name>_backward``, ``<name>_tangent``, ``<name>_second``."""

    def __init__(self, name: str, launches: Launches) -> None:
        self.name, self.of = name, launches
        self.value = self._define("", self._value, self._value_like, graphs.value)
        self.backward = self._define("_backward", self._gradients, self._gradients_like, graphs.last)
        self.tangent = self._define("_tangent", self._tangent, self._tangent_like, graphs.tangent)
        self.second = self._define("_second", self._second, self._second_like, graphs.last)

    def _define(self, suffix: str, part: Part, like: Part, graph: Callable[..., list[Tensor]]) -> graphs.Op:
        name = self.name + suffix
        LIBRARY.define(name + SCHEMA, tags=TAGS)
        LIBRARY.impl(name, partial(_real, part), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fewstep::{name}", partial(_fake, like), lib=LIBRARY)
        op: graphs.Op = getattr(torch.ops.fewstep, name).default
        LIBRARY.impl(name, partial(graph, self, op), "Autograd")
        return op

    def _value(self, call: Call, _: list[Tensor], __: Sequence[str]) -> Tensors:
        return self.of.value(call)

    def _value_like(self, call: Call, _: list[Tensor], __: Sequence[str]) -> Tensors:
        return self.of.like(*call.args)

    def _gradients(self, call: Call, more: list[Tensor], marked: Sequence[str]) -> Tensors:
        """Of the results and the gradients that are given, to the gradients that are wanted."""
        wanted, given = marked
        size = len(more) - given.count("1")
        return self.of.gradients(call, more[:size], spread(given, more[size:]), [mark == "1" for mark in wanted])

    def _gradients_like(self, call: Call, _: list[Tensor], marked: Sequence[str]) -> Tensors:
        return _marked(call.tensors, marked[0])

    def _tangent(self, call: Call, more: list[Tensor], marked: Sequence[str]) -> Tensors:
        """Of the tangents that are given, to the results and their tangents."""
        results, tangents = self.of.tangent(call, spread(marked[0], more))
        return [*results, *tangents]

    def _tangent_like(self, call: Call, _: list[Tensor], __: Sequence[str]) -> Tensors:
        results = self.of.like(*call.args)
        return [*results, *results[: self.of.outputs]]

    def _second(self, call: Call, more: list[Tensor], marked: Sequence[str]) -> Tensors:
        """Of the tangents and the gradients that are given, to the gradients that are wanted."""
        moved, given, wanted = marked
        size = moved.count("1")
        tangents, grads = spread(moved, more[:size]), spread(given, more[size:])
        return self.of.second(call, tangents, grads, [mark == "1" for mark in wanted])

    def _second_like(self, call: Call, more: list[Tensor], marked: Sequence[str]) -> Tensors:
        return _marked([*call.tensors, *more[: marked[0].count("1")]], marked[2])


def _run(part: Part, layouts: bool, spec: str, tensors: list[Tensor], ints: list[int], floats: list[float]) -> Tensors:
    kinds, *marked = spec.split("|")
    size = count(kinds)
    return part(read(kinds, tensors[:size], ints, floats, layouts), tensors[size:], marked)


def _real(part: Part, spec: str, tensors: list[Tensor], ints: list[int], floats: list[float]) -> list[Tensor]:
    with _afresh():
        return _own(_run(part, True, spec, tensors, ints, floats), tensors)


def _fake(like: Part, spec: str, tensors: list[Tensor], ints: list[int], floats: list[float]) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in _run(like, False, spec, tensors, ints, floats)]
