"""Dense and packed layouts against plain loops over the samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import per
from fewstep.errors import FewstepError

LENGTHS = [3, 1, 0, 7]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(sum(LENGTHS), 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def samples(x: Tensor) -> list[Tensor]:
    return list(x.split(LENGTHS))


def test_packed_reductions(x: Tensor) -> None:
    layout = Packed.of_lengths(LENGTHS)
    for i, part in enumerate(samples(x)):
        assert layout.sum(x)[i].item() == pytest.approx(part.sum().item())
        assert layout.norm(x)[i].item() == pytest.approx(part.norm().item())
        assert layout.mean(x)[i].item() == pytest.approx(part.mean().item() if len(part) else 0.0)
    assert layout.batch_size == 4
    assert layout.lengths.tolist() == LENGTHS
    assert layout.index.tolist() == [0, 0, 0, 1, *[3] * 7]


def test_dense_reductions(x: Tensor) -> None:
    layout = Dense(len(x))
    for name in ("sum", "mean"):
        assert torch.allclose(getattr(layout, name)(x), getattr(x.flatten(1), name)(1))
    assert torch.allclose(layout.norm(x), x.flatten(1).norm(dim=1))


@pytest.mark.parametrize("layout", [Dense(3), Packed.of_lengths([3, 1, 7])])
def test_expand_broadcasts_one_value_a_sample(layout: Layout) -> None:
    rows = 3 if isinstance(layout, Dense) else 11
    x, v_B = torch.zeros(rows, 2, 5), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    out = layout.expand(v_B, x)
    assert out.shape == (rows, 1, 1)
    assert out.dtype == torch.float32
    expected = v_B if isinstance(layout, Dense) else v_B.repeat_interleave(torch.tensor([3, 1, 7]))
    assert torch.equal((x + out)[:, 1, 4], expected.float())


def test_select_keeps_order_rows_and_coordinates(x: Tensor) -> None:
    coords = torch.arange(sum(LENGTHS) * 3).reshape(-1, 3)
    layout = Packed.of_lengths(LENGTHS, coords)
    out, part = layout.select(x, torch.tensor([3, 0, 2]))
    parts = samples(x)
    assert torch.equal(out, torch.cat([parts[3], parts[0]]))
    assert part.lengths.tolist() == [7, 3, 0]
    assert part.coords is not None
    assert torch.equal(part.coords, torch.cat([coords[4:], coords[:3]]))
    dense, layout_d = Dense(len(x)).select(x, torch.tensor([5, 1]))
    assert torch.equal(dense, x[[5, 1]])
    assert layout_d.batch_size == 2


def test_batch_selects_everything_together(x: Tensor) -> None:
    tokens = torch.arange(4.0)[:, None]
    batch = Batch(x, Packed.of_lengths(LENGTHS), Condition(tokens, -tokens)).select(torch.tensor([1, 3]))
    assert batch.layout.batch_size == 2
    assert len(batch.x0) == 8
    assert batch.cond.tokens is not None
    assert batch.cond.negative_tokens is not None
    assert batch.cond.tokens.flatten().tolist() == [1.0, 3.0]
    assert batch.cond.negative_tokens.flatten().tolist() == [-1.0, -3.0]


@pytest.mark.parametrize("bounds", [[1, 2], [0, 3, 2], [0], [[0, 1]], []])
def test_bad_boundaries_are_refused(bounds: list[int]) -> None:
    with pytest.raises(FewstepError, match=r"layout\.cu_seqlens"):
        Packed(torch.tensor(bounds, dtype=torch.int64))


def test_one_sample_without_rows() -> None:
    layout = Packed.of_lengths([0])
    x = torch.zeros(0, 4)
    assert layout.sum(x).tolist() == [0.0]
    assert layout.mean(x).tolist() == [0.0]
    assert layout.norm(x).tolist() == [0.0]
    assert layout.expand(torch.ones(1), x).shape == (0, 1)


@pytest.mark.parametrize("layout", [Dense(11), Packed.of_lengths(LENGTHS)])
@pytest.mark.parametrize("name", ["sum", "mean", "norm"])
def test_reductions_have_forward_and_reverse_derivatives(layout: Layout, name: str, x: Tensor) -> None:
    if name == "norm" and isinstance(layout, Packed):
        layout = Packed.of_lengths([3, 1, 7])  # the norm of nothing has no derivative
    reduce, direction = getattr(layout, name), torch.ones_like(x)
    forward = torch.func.jvp(reduce, (x,), (direction,))[1]
    back = torch.func.vjp(reduce, x)[1]
    rows = torch.eye(layout.batch_size, dtype=x.dtype)
    reverse = torch.stack([(back(row)[0] * direction).sum() for row in rows])
    assert torch.allclose(forward, reverse, atol=1e-12)


def test_loss_terms_by_element_and_by_sample() -> None:
    layout = Packed.of_lengths([1, 3])
    x = torch.tensor([[4.0], [1.0], [1.0], [1.0]])
    assert per("element", x, layout).mean().item() == pytest.approx(7 / 4)
    assert per("sample", x, layout).mean().item() == pytest.approx(5 / 2)
    assert per("sample", x, Dense(4)).mean().item() == per("element", x, Dense(4)).mean().item()


def test_a_layout_shows_its_size_and_not_its_tensors() -> None:
    assert repr(Packed.of_lengths([2, 0, 3])) == "Packed(3 samples, 5 rows)"
