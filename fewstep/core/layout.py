"""How a batch of samples lies in memory: ``Dense`` or ``Packed``, an object beside the plain tensors.

An objective that reduces, broadcasts and draws only through its layout handles an image-like [B, C, H, W] tensor and
a ragged [T, C] one with the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import InitVar, dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fewstep.errors import FewstepError, invalid

T = TypeVar("T")


def add_rows(x: Tensor, index: Tensor, count: int) -> Tensor:
    """[T, ...] to [count, ...]: row i is the sum of the rows whose ``index`` [T] is i.

    ``index_add``, because ``segment_reduce`` has no forward-mode derivative. Inside torch.compile ``scatter_add``,
    because inductor (2.11 to 2.13) silently miscompiles the tangent of an ``index_add`` onto zeros. Half precision is
    summed in float32: a GPU rounds after each row, so that a sum of ones in fp16 would stop at 2,048.
    """
    rows = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    zeros = rows.new_zeros(count, *x.shape[1:])
    if torch.compiler.is_compiling():
        total = zeros.scatter_add(0, index.reshape(-1, *[1] * (x.dim() - 1)).expand_as(x), rows)
    else:
        total = zeros.index_add(0, index, rows)
    return total.to(x.dtype)


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on another device. A copy to a GPU does not make the host wait for work queued there."""
    return x.to(device, non_blocking=torch.device(device).type == "cuda")


@runtime_checkable
class Layout(Protocol):
    """What an objective may ask of a layout. ``*_B`` tensors have one value per sample."""

    @property
    def batch_size(self) -> int: ...
    def expand(self, v_B: Tensor, like: Tensor) -> Tensor: ...
    def sum(self, x: Tensor) -> Tensor: ...
    def mean(self, x: Tensor) -> Tensor: ...
    def norm(self, x: Tensor) -> Tensor: ...
    def select(self, x: Tensor, rows_B: Tensor) -> tuple[Tensor, Layout]: ...
    def to(self, device: torch.device | str) -> Layout: ...


@dataclass(frozen=True)
class Dense:
    """Samples of one shape: x is [B, ...]."""

    batch_size: int

    def expand(self, v_B: Tensor, like: Tensor) -> Tensor:
        """[B] -> [B, 1, ...], broadcastable against ``like`` [B, ...]; float64 times keep the dtype of ``like``."""
        return v_B.to(like.dtype).reshape(self.batch_size, *[1] * (like.dim() - 1))

    def sum(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B]: the sum over all elements of each sample."""
        return x.reshape(self.batch_size, -1).sum(1)

    def mean(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B]: the mean over all elements of each sample."""
        return x.reshape(self.batch_size, -1).mean(1)

    def norm(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B]: the Euclidean norm of each sample over all its elements."""
        return self.sum(x.square()).sqrt()

    def select(self, x: Tensor, rows_B: Tensor) -> tuple[Tensor, Dense]:
        """The samples with the indices ``rows_B`` (int64), and their layout."""
        return x[rows_B], Dense(len(rows_B))

    def to(self, device: torch.device | str) -> Dense:
        """Itself: it holds no tensors."""
        return self


@dataclass(frozen=True, eq=False, repr=False)
class Packed:
    """Ragged samples concatenated: x is [T, C], and sample i has the rows from cu_seqlens[i] up to cu_seqlens[i + 1].

    What is derived from a layout (neighbour maps, windows, coarser layouts) is computed once and cached on it by
    :meth:`once`, so that every layer, sampler step and pass with the same layout object shares it.

    Args:
        cu_seqlens: int64 [B + 1], non-decreasing, from 0 to T. A sample of length 0 is allowed.
        coords: optional integer coordinates [T, A] along A axes, carried for backbones that need positions.
        known: the boundaries as Python integers, if the host has them already; saves a device synchronisation.

    Raises:
        FewstepError: for boundaries that are not a non-decreasing vector from 0, or coords of another length or
            on another device.
    """

    cu_seqlens: Tensor
    coords: Tensor | None = None
    known: InitVar[list[int] | None] = None
    index: Tensor = field(init=False)
    lengths_list: list[int] = field(init=False)
    _cache: dict[Hashable, Any] = field(init=False, default_factory=dict)
    _caches_beside: WeakKeyDictionary[Packed, dict[Hashable, Any]] = field(
        init=False, default_factory=WeakKeyDictionary
    )

    def __repr__(self) -> str:
        return f"Packed({self.batch_size} samples, {self.rows} rows)"

    def __post_init__(self, known: list[int] | None) -> None:
        bounds = self.cu_seqlens
        # The only copy of the boundaries to the host: everything later works from this list.
        listed = known or (bounds.tolist() if bounds.dim() == 1 else [])
        if len(listed) < 2 or listed[0] != 0 or any(b < a for a, b in pairwise(listed)):
            raise FewstepError(
                f"layout.cu_seqlens: got {bounds.tolist()}; accepted: a non-decreasing vector that starts at 0"
            )
        if self.coords is not None and len(self.coords) != listed[-1]:
            raise invalid("layout.coords", tuple(self.coords.shape), f"one row for each of the {listed[-1]} rows")
        if self.coords is not None and self.coords.device != bounds.device:
            raise invalid("device of layout.coords", str(self.coords.device), f"{bounds.device}, as of cu_seqlens")
        rows = torch.arange(len(bounds) - 1, device=bounds.device)
        index = rows.repeat_interleave(bounds.diff(), output_size=listed[-1])
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "lengths_list", [b - a for a, b in pairwise(listed)])

    @classmethod
    def of_lengths(
        cls, lengths: list[int], coords: Tensor | None = None, device: torch.device | str | None = None
    ) -> Packed:
        """The layout of samples with these numbers of rows."""
        bounds = [0, *accumulate(lengths)]
        return cls(moved(torch.tensor(bounds, device="cpu"), device or torch.get_default_device()), coords, bounds)

    @classmethod
    def of_index(cls, index_T: Tensor, coords: Tensor | None = None, batch_size: int | None = None) -> Packed:
        """The layout of rows given the sample of each.

        Args:
            index_T: [T] the sample that each row belongs to, ascending.
            coords: [T, A], see the class.
            batch_size: number of samples; by default the largest index + 1. Samples without rows are empty.

        Raises:
            FewstepError: for rows out of order, or an index outside the batch.
        """
        index = index_T.to(torch.int64)
        if bool((index.diff() < 0).any()):
            raise invalid("layout.index", "descending samples", "ascending samples: sort the rows by sample first")
        last = int(index[-1]) + 1 if len(index) else 0
        size = max(last, 1) if batch_size is None else batch_size
        if last > size or (len(index) and int(index[0]) < 0):
            raise invalid("layout.index", f"samples {int(index[0])} to {last - 1}", f"0 to {size - 1}")
        counts = torch.bincount(index, minlength=size)
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), coords)

    def once(self, key: Hashable, build: Callable[[], T], beside: Packed | None = None) -> T:
        """What ``build`` returns. It is called once for each key, and the result is cached while the layout lives.

        The cached object must not reference this layout: the cycle would keep its tensors until Python's garbage
        collector runs.

        Args:
            key: what is built.
            build: makes it.
            beside: a second layout that the result depends on, such as that of the keys in cross attention. It is
                held weakly, and may be this layout.
        """
        cache = self._cache if beside is None else self._caches_beside.setdefault(beside, {})
        if key not in cache:
            # A sampler may run in inference mode; what it builds must serve a later pass that needs gradients.
            with torch.inference_mode(False):
                cache[key] = build()
        cached: T = cache[key]
        return cached

    def to(self, device: torch.device | str) -> Packed:
        """The same layout on another device; the layout itself if it is there already."""
        bounds = moved(self.cu_seqlens, device)
        if bounds is self.cu_seqlens:
            return self
        listed = [0, *accumulate(self.lengths_list)]
        return Packed(bounds, None if self.coords is None else moved(self.coords, device), listed)

    @property
    def rows(self) -> int:
        """T, without a device synchronisation."""
        return len(self.index)

    @property
    def batch_size(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> Tensor:
        """[B] rows of each sample."""
        return self.cu_seqlens.diff()

    def expand(self, v_B: Tensor, like: Tensor) -> Tensor:
        """[B] -> [T, 1, ...], broadcastable against ``like`` [T, ...]."""
        return v_B.to(like.dtype)[self.index].reshape(-1, *[1] * (like.dim() - 1))

    def sum(self, x: Tensor) -> Tensor:
        """[T, ...] -> [B]."""
        return add_rows(x.flatten(1).sum(1) if x.dim() > 1 else x, self.index, self.batch_size)

    def mean(self, x: Tensor) -> Tensor:
        """[T, ...] -> [B]: the mean over all rows and channels of each sample; 0 for an empty one."""
        width = x[0].numel() if len(x) else 1
        return self.sum(x) / (self.lengths * width).clamp(min=1).to(x.dtype)

    def norm(self, x: Tensor) -> Tensor:
        """[T, ...] -> [B]: the Euclidean norm of each sample over all its rows and channels."""
        return self.sum(x.square()).sqrt()

    def select(self, x: Tensor, rows_B: Tensor) -> tuple[Tensor, Packed]:
        """The samples with the indices ``rows_B`` (int64), in that order, and their layout."""
        samples, chosen = torch.arange(self.rows, device=x.device).split(self.lengths_list), rows_B.tolist()
        rows = torch.cat([samples[i] for i in chosen])
        coords = None if self.coords is None else self.coords[rows]
        return x[rows], Packed.of_lengths([self.lengths_list[i] for i in chosen], coords, x.device)
