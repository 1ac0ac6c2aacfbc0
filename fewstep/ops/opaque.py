"""Kernels as nodes of a compiled graph: torch.compile neither looks into them nor breaks the graph at them.

A kernel that works with a layout's lists, launches Triton or is an ``autograd.Function`` with a ``jvp`` cannot be traced.
As a torch op it goes into a graph whole, with its gradient and its tangent: ``opaque`` makes one of it.

torch's own ``custom_op`` drops tangents without a word, so what happens under differentiation is written out here. A
call is sent as a text that says what its tensors are, the tensors, its integers and its floats; a layout travels as
its boundaries and coordinates, by which it is found again, so that a graph serves layouts of all lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fewstep.alive import owner_of
from fewstep.errors import FewstepError
from fewstep.layout import Packed
from fewstep.ops.launches import Call, Launches, Maybe, Tensors, kept
from fewstep.ops.tangents import has_dual, transforms

LIBRARY = torch.library.Library("fewstep", "FRAGMENT")
SCHEMA = "(str spec, Tensor[] tensors, SymInt[] ints, float[] floats) -> Tensor[]"
TAGS = [getattr(torch.Tag, name) for name in ("pt2_compliant_tag", "cudagraph_unsafe") if hasattr(torch.Tag, name)]
_found_again: deque[Packed] = deque(maxlen=16)  # layouts that outlived their owner, for the next layer
Rest = tuple[list[int], list[float]]


def opaque(name: str, launches: Launches, run: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The function to register in the op table for a kernel that torch.compile must not look into.

    Args:
        name: of the torch ops ``fewstep::<name>`` and, for its derivatives, ``<name>_...``; unique.
        launches: its parts.
        run: what serves outside of torch.compile; by default ``launches.run``.

    Returns:
        A function of tensors, packed layouts, numbers and None. Outside of torch.compile it is ``run`` itself plus 0.1
        microseconds. In nested or reverse ``torch.func`` transforms inside a compiled function it is ``launches.run``,
        traced: as slow as the oracle, and right or an error.
    """
    eager, node = run or launches.run, Node(name, launches)

    def call(*args: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            return eager(*args)
        if transforms() not in ((), ("jvp",)):
            return launches.run(*args)
        found = node.value(*flat(args))
        return found[0] if launches.outputs == 1 else tuple(found[: launches.outputs])

    return call


def flat(args: Sequence[Any]) -> tuple[str, list[Tensor], list[int], list[float]]:
    """A call's arguments as a torch op takes them. Raises FewstepError for an argument that it cannot take."""
    spec, tensors, ints, floats = "", [], [], []
    for a in args:
        if isinstance(a, Tensor):
            spec, tensors = spec + "t", [*tensors, a]
        elif a is None:
            spec += "n"
        elif isinstance(a, Packed):
            spec += "p" if a.coords is None else "c"
            tensors = [*tensors, a.cu_seqlens] + ([] if a.coords is None else [a.coords])
        elif isinstance(a, int):
            spec, ints = spec + "i", [*ints, a]
        elif isinstance(a, float):
            spec, floats = spec + "f", [*floats, a]
        else:
            raise FewstepError(f"argument of type {type(a)}; accepted: tensors, packed layouts, numbers, None")
    return spec, tensors, ints, floats


def _layout(bounds: Tensor, coords: Tensor | None) -> Packed:
    """The layout that these tensors were taken from; a new one where it is gone."""
    found = owner_of(bounds, coords)
    if found is None:
        found = Packed(bounds, coords)
        _found_again.append(found)
    return found


def read(spec: str, tensors: Tensors, rest: Rest, layouts: bool) -> Call:
    """The inverse of :func:`flat`; without ``layouts`` each of them is None."""
    parts, ints, floats = iter(tensors), iter(rest[0]), iter(rest[1])
    args: list[Any] = []
    for kind in spec:
        if kind == "t":
            args.append(next(parts))
        elif kind in "pc":
            bounds, coords = next(parts), next(parts) if kind == "c" else None
            args.append(_layout(bounds, coords) if layouts else None)
        else:
            args.append(None if kind == "n" else next(ints if kind == "i" else floats))
    return Call(args)


def marks(values: Sequence[Any]) -> str:
    """A text of 0 for None and False, 1 for everything else."""
    return "".join("0" if v is None or v is False else "1" for v in values)


def spread(text: str, values: Sequence[Any]) -> list[Any]:
    """``values`` at the places marked 1, None elsewhere."""
    found = iter(values)
    return [next(found) if mark == "1" else None for mark in text]


@contextmanager
def differentiable() -> Iterator[None]:
    """Autograd again inside an op's implementation, which runs below it."""
    out, keys = torch._C._dispatch_tls_local_exclude_set(), torch._C.DispatchKey
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
        if hasattr(keys, name):
            out = out.remove(getattr(keys, name))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), out), torch.no_grad():
        yield


def own(found: Tensors, inputs: Tensors) -> list[Tensor]:
    """Contiguous, and no result shares memory with an input: what a torch op promises."""
    taken = {x.untyped_storage()._cdata for x in inputs}
    return [x.clone() if x.untyped_storage()._cdata in taken else x.contiguous() for x in found]


def empty(like: Tensors) -> list[Tensor]:
    """Contiguous tensors of the same shapes."""
    return [x.new_empty(x.shape) for x in like]


Part = Callable[[str, Call, list[Tensor]], Tensors]
Op = Callable[[str, list[Tensor], list[int], list[float]], list[Tensor]]


class Node:
    """The torch ops of one kernel: its value, its gradients, value and tangent, and the gradients of a tangent.

    The text of each is "arguments|what else"; tensors of the arguments come first in its list, then the others.
    """

    def __init__(self, name: str, launches: Launches) -> None:
        self.name, self.of = name, launches
        self.value = self._define("", self._value, self._value_like, self._value_graph)
        self.backward = self._define("_backward", self._gradients, self._gradients_like, self._no_graph)
        self.tangent = self._define("_tangent", self._tangent, self._tangent_like, self._tangent_graph)
        self.second = self._define("_second", self._second, self._second_like, self._no_graph)

    def _define(self, suffix: str, part: Part, like: Part, graph: Callable[[Op, Any], list[Tensor]]) -> Op:
        name = self.name + suffix

        def implementation(spec: str, tensors: list[Tensor], ints: list[int], floats: list[float]) -> list[Tensor]:
            with differentiable():
                return own(self._split(part, spec, tensors, (ints, floats), True), tensors)

        def fake(spec: str, tensors: list[Tensor], ints: list[int], floats: list[float]) -> list[Tensor]:
            return empty(self._split(like, spec, tensors, (ints, floats), False))

        LIBRARY.define(name + SCHEMA, tags=TAGS)
        LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fewstep::{name}", fake, lib=LIBRARY)
        op: Op = getattr(torch.ops.fewstep, name).default
        LIBRARY.impl(name, lambda *args: graph(op, args), "Autograd")
        return op

    def _split(self, part: Part, spec: str, tensors: list[Tensor], rest: Rest, layouts: bool) -> Tensors:
        kinds, _, more = spec.partition("|")
        count = len(kinds) + kinds.count("c") - sum(map(kinds.count, "nif"))
        return part(more, read(kinds, tensors[:count], rest, layouts), tensors[count:])
