"""Sums over the rows of a sample in half precision, with the rounding of a GPU: its index_add rounds after each row.

On an H100 that halved a gradient: 4,091 ones in fp16 add up to 2,048, where 1 is lost.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.core.layout import Packed, add_rows
from fewstep.ops.modulation import reference_gated_residual, reference_modulated_norm

LAYOUT = Packed.of_lengths([4091, 4101])
HALF = (torch.float16, torch.bfloat16)


class RoundedSums(TorchDispatchMode):
    """``index_add`` in half precision adds row by row; torch on a CPU rounds only the sum."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ops = torch.ops.aten
        if func not in (ops.index_add.default, ops.index_add_.default) or args[0].dtype not in HALF:
            return func(*args, **(kwargs or {}))
        out = args[0] if func is ops.index_add_.default else args[0].clone()
        for at, row in zip(args[2].tolist(), args[3], strict=True):
            out[at] += row
        return out


def test_the_rounding_that_is_stood_in_for() -> None:
    with RoundedSums():
        total = torch.zeros(2, 1, dtype=torch.float16).index_add(0, LAYOUT.index, torch.ones(LAYOUT.rows, 1).half())
    assert total.tolist() == [[2048], [2048]]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gradients_of_what_a_sample_has(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    x, y, v, w = (torch.randn(n, 8, generator=draw).to(dtype) for n in (LAYOUT.rows, LAYOUT.rows, 2, 2))

    def gradients(x: Tensor, y: Tensor, *values: Tensor) -> list[Tensor]:
        shift, scale = (u.requires_grad_() for u in values)
        normed = reference_modulated_norm(x, shift, scale, LAYOUT, 1e-6)
        gated = reference_gated_residual(x, shift, y, LAYOUT)
        found = torch.autograd.grad(normed, [shift, scale], torch.ones_like(x))
        return [*found, *torch.autograd.grad(gated, shift, torch.ones_like(x))]

    with RoundedSums():
        got = gradients(x, y, v.clone(), w.clone())
    for ours, right in zip(got, gradients(x.double(), y.double(), v.double(), w.double()), strict=True):
        assert ours.dtype == dtype
        assert float((ours.double() - right).norm() / right.norm()) < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_sums_and_means_of_samples(dtype: torch.dtype) -> None:
    ones = torch.ones(LAYOUT.rows, dtype=dtype)
    with RoundedSums():
        assert torch.equal(add_rows(ones, LAYOUT.index, 2), LAYOUT.lengths.to(dtype))
        assert LAYOUT.mean(ones).tolist() == [1, 1]
