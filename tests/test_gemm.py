"""Products that go through a 1x1 convolution are products: values, gradients, tangents; and when they do so."""

from __future__ import annotations

import pytest
import torch
from fewstep_shapes3d import gemm
from torch import Tensor

from fewstep.ops.table import ENV


@pytest.fixture(autouse=True)
def detour(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where it pays, whichever this one is."""
    monkeypatch.setattr(gemm, "half_width", lambda: True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ROWS, INNER, COLUMNS = 700, 64, 96  # more than one batch of rows, and a remainder


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


def test_this_case_takes_the_detour() -> None:
    assert gemm.pays(ROWS, INNER, COLUMNS)
    assert not gemm.pays(3, INNER, COLUMNS)
    assert not gemm.pays(ROWS, INNER, 3)


@pytest.mark.parametrize("biased", [False, True])
def test_product(biased: bool) -> None:
    args = [draw(ROWS, INNER), draw(COLUMNS, INNER, seed=1), draw(COLUMNS, seed=2)][: 3 if biased else 2]
    given, same = ([x.clone().requires_grad_() for x in args] for _ in range(2))
    ours, plain = gemm.product(*given), torch.nn.functional.linear(*same)
    assert close(ours, plain)
    assert ours.is_contiguous()
    weight = draw(ROWS, COLUMNS, seed=3)
    gradients = zip(torch.autograd.grad(ours, given, weight), torch.autograd.grad(plain, same, weight), strict=True)
    assert all(close(one, other) for one, other in gradients)


def test_tangents() -> None:
    args, ways = (
        (draw(ROWS, INNER), draw(COLUMNS, INNER, seed=1)),
        (draw(ROWS, INNER, seed=4), draw(COLUMNS, INNER, seed=5)),
    )
    _, tangent = torch.func.jvp(gemm.product, args, ways)
    assert close(tangent, ways[0] @ args[1].T + args[0] @ ways[1].T)


@pytest.mark.parametrize("rows", [ROWS, 512, 5])
def test_sum_over_rows(rows: int) -> None:
    a, b = draw(rows, INNER), draw(rows, COLUMNS, seed=1)
    assert close(gemm.row_sum(a, b), a.T @ b)


def test_the_oracles_do_not_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> Tensor:
        raise AssertionError("a convolution was called")

    monkeypatch.setattr(gemm.F, "conv2d", never)
    with pytest.raises(AssertionError):
        gemm.product(draw(ROWS, INNER), draw(COLUMNS, INNER))
    monkeypatch.setenv(ENV, "reference")
    assert gemm.product(draw(ROWS, INNER), draw(COLUMNS, INNER)).shape == (ROWS, COLUMNS)
    monkeypatch.delenv(ENV)
    assert gemm.product(draw(ROWS, INNER).double(), draw(COLUMNS, INNER).double()).dtype == torch.float64
