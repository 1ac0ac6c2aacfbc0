"""What is cached on a layout is freed with it by reference counting, without the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from fewstep_shapes3d.sparse import pool_mean, submanifold_conv, unpool, windowed_attention
from fewstep_shapes3d.sparse.geometry import children, coords_of, neighbours, pooling
from fewstep_shapes3d.sparse.windows import windows
from fewstep_trellis.models.sparse_layers import SparseCrossAttention, position_embedding_of
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops import dispatch, varlen_attention

LENGTHS = [9, 0, 4]


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def heads(rows: int) -> Tensor:
    return torch.randn(rows, 2, 16)


def convolve(layout: Packed) -> None:
    submanifold_conv(torch.randn(13, 4), torch.randn(5, 3, 3, 3, 4), None, layout)


def resample(layout: Packed) -> None:
    pool = pooling(layout)
    unpool(pool_mean(torch.randn(13, 4), pool), pool)
    pooling(pool.coarse)


def cross(layout: Packed) -> None:
    keys = Packed.of_lengths([3, 2, 5])
    varlen_attention(heads(13), heads(10), heads(10), layout, keys)
    varlen_attention(heads(10), heads(13), heads(13), keys, layout)


def with_gradient(op: Callable[[Tensor], Tensor]) -> None:
    x = heads(13).requires_grad_()
    op(x).sum().backward()


USES: dict[str, Callable[[Packed], object]] = {
    "coordinates": coords_of,
    "windows": lambda layout: windows(layout, 2),
    "windowed attention": lambda layout: with_gradient(lambda x: windowed_attention(x, x, x, layout, 2, 1)),
    "pooling": resample,
    "neighbours": lambda layout: neighbours(layout).pairs,
    "children": children,
    "convolution": convolve,
    "self attention": lambda layout: with_gradient(lambda x: varlen_attention(x, x, x, layout, layout)),
    "cross attention": cross,
    "position embedding": lambda layout: position_embedding_of(layout, 12),
    "condition": lambda layout: SparseCrossAttention(32, 8, 2)(torch.randn(13, 32), torch.randn(3, 5, 8), layout),
}


def freed(use: Callable[[Packed], object]) -> bool:
    """Whether nothing of the layout lives on once its last user is gone."""
    cells = torch.cartesian_prod(*[torch.arange(3)] * 3)
    layout = Packed.of_lengths(LENGTHS, torch.cat([cells[:9], cells[5:9]]))
    use(layout)
    parts = [weakref.ref(x) for x in (layout, layout.index, layout.cu_seqlens)]
    del layout
    return all(part() is None for part in parts)


@pytest.mark.parametrize("name", USES)
def test_it_is_freed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_OPS", raising=False)
    assert freed(USES[name])


@pytest.mark.usefixtures("triton_only")
@pytest.mark.parametrize("name", ["windowed attention", "convolution", "self attention", "cross attention"])
def test_plans_of_triton_kernels_are_freed(name: str) -> None:
    layout = Packed.of_lengths([2])
    assert dispatch("varlen_attention", *[heads(2)] * 3, layout, layout).backend == "triton"
    assert freed(USES[name])


def test_a_second_layout_is_held_weakly() -> None:
    queries, keys = Packed.of_lengths([2]), Packed.of_lengths([3])
    built = [queries.once("both", lambda: [1], beside=keys) for _ in range(2)]
    assert built[0] is built[1]
    gone = weakref.ref(keys)
    del keys
    assert gone() is None
    assert queries.once("both", lambda: [2], beside=Packed.of_lengths([3])) == [2]
