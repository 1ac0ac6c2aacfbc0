"""Ops on ragged voxels: each fast kernel against its oracle, tangents against differences, and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fewstep_kernels.attention.kernels import by_sample, few_and_long
from fewstep_shapes3d.sparse import (
    pool_mean,
    sample_group_norm,
    subdivide,
    submanifold_conv,
    unpool,
    windowed_attention,
)
from fewstep_shapes3d.sparse.geometry import children, coords_of, neighbours, pooling
from fewstep_shapes3d.sparse.windows import windows
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep.ops import varlen_attention
from fewstep.ops.calls import dispatch
from fewstep.ops.table import ENV, kernels

LENGTHS = [1, 17, 0, 2100, 63]
Op = Callable[..., Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def voxels(lengths: list[int] = LENGTHS, edge: int = 15) -> Packed:
    """Random distinct voxels of an odd grid, rows in random order."""
    generator = torch.Generator().manual_seed(1)
    grid = torch.cartesian_prod(*[torch.arange(edge)] * 3)
    return Packed.of_lengths(
        lengths, torch.cat([grid[torch.randperm(edge**3, generator=generator)[:n]] for n in lengths])
    )


CROSS = Packed.of_lengths([5, 1, 3, 700, 2])


def cases(layout: Packed) -> dict[str, tuple[Op, tuple[Tensor, ...]]]:
    rows = layout.rows
    heads = tuple(draw(rows, 2, 4, seed=i) for i in range(3))
    keys = tuple(draw(CROSS.rows, 2, 4, seed=i) for i in range(2))
    coarse = pooling(layout).coarse.rows
    return {
        "self": (lambda q, k, v: varlen_attention(q, k, v, layout, layout), heads),
        "cross": (lambda q, k, v: varlen_attention(q, k, v, layout, CROSS), (heads[0], *keys)),
        "windows": (lambda q, k, v: windowed_attention(q, k, v, layout, 4, 2), heads),
        "conv": (
            lambda x, w, b: submanifold_conv(x, w, b, layout),
            (draw(rows, 3), draw(5, 3, 3, 3, 3), draw(5)),
        ),
        "conv of size 1": (lambda x, w: submanifold_conv(x, w, None, layout), (draw(rows, 3), draw(5, 1, 1, 1, 3))),
        "pool": (lambda x: pool_mean(x, pooling(layout)), (draw(rows, 3),)),
        "unpool": (lambda x: unpool(x, pooling(layout)), (draw(coarse, 3),)),
        "subdivide": (subdivide, (draw(rows, 3),)),
        "group norm": (
            lambda x, w, b: sample_group_norm(x, layout, 2, w, b),
            (draw(rows, 6), draw(6), draw(6)),
        ),
    }


NAMES = list(cases(voxels()))


def with_gradients(op: Op, args: tuple[Tensor, ...]) -> list[Tensor]:
    given = [a.clone().requires_grad_() for a in args]
    out = op(*given)
    return [out.detach(), *torch.autograd.grad(out, given, draw(*out.shape, seed=9))]


@pytest.mark.parametrize("name", NAMES)
def test_against_the_oracle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, args = cases(voxels())[name]
    ours = with_gradients(op, args)
    monkeypatch.setenv(ENV, "reference")
    for one, other in zip(ours, with_gradients(op, args), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_tangents_against_differences(name: str) -> None:
    op, args = cases(voxels([1, 9, 0, 120, 30], 7))[name] if name != "cross" else cases(voxels())[name]
    ways = tuple(draw(*a.shape, seed=20 + i) for i, a in enumerate(args))
    _, tangent = torch.func.jvp(op, args, ways)
    h = 1e-5
    ahead, behind = (op(*(a + s * h * w for a, w in zip(args, ways, strict=True))) for s in (1, -1))
    assert torch.allclose(tangent, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["self", "windows", "conv", "group norm"])
def test_samples_in_another_order(name: str) -> None:
    layout = voxels()
    op, args = cases(layout)[name]
    order = torch.tensor([3, 0, 4, 2, 1])
    moved, other = layout.select(args[0], order)
    assert isinstance(other, Packed)
    again, _ = cases(other)[name]
    rest = [layout.select(a, order)[0] if len(a) == layout.rows else a for a in args[1:]]
    assert torch.allclose(again(moved, *rest), layout.select(op(*args), order)[0], rtol=1e-10, atol=1e-10)


def dense(layout: Packed, x: Tensor, edge: int = 15) -> Tensor:
    """[B, C, edge, edge, edge] with zeros where there is no voxel."""
    grid = x.new_zeros(layout.batch_size, *[edge] * 3, x.shape[1])
    grid[(layout.index, *coords_of(layout).T)] = x
    return grid.movedim(-1, 1)


def test_convolution_is_the_dense_one_at_the_voxels() -> None:
    layout, x, w, b = voxels(), draw(sum(LENGTHS), 3), draw(5, 3, 3, 3, 3, seed=1), draw(5, seed=2)
    full = F.conv3d(dense(layout, x), w.movedim(-1, 1), b, padding=1).movedim(1, -1)
    expected = full[(layout.index, *coords_of(layout).T)]
    assert torch.allclose(submanifold_conv(x, w, b, layout), expected, atol=1e-12)


def test_a_kernel_of_size_1_is_read_as_a_matrix() -> None:
    x, w = draw(sum(LENGTHS), 3), draw(5, 1, 1, 1, 3)
    assert torch.allclose(submanifold_conv(x, w, None, voxels()), x @ w.reshape(3, 5))


def test_second_derivatives_of_the_convolution() -> None:
    layout = voxels([2, 12], 4)
    args = (draw(14, 2).requires_grad_(), draw(3, 3, 3, 3, 2).requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x, w: submanifold_conv(x, w, None, layout), args)


def test_the_mean_counts_the_zero_that_it_starts_with() -> None:
    layout = Packed.of_lengths([3], torch.tensor([[0, 0, 0], [1, 1, 1], [5, 4, 2]]))
    pool = pooling(layout)
    assert pool_mean(torch.tensor([[1.0], [2.0], [8.0]]), pool).tolist() == [[1.0], [4.0]]
    assert coords_of(pool.coarse).tolist() == [[0, 0, 0], [2, 2, 1]]
    assert unpool(torch.tensor([[1.0], [4.0]]), pool).tolist() == [[1.0], [1.0], [4.0]]


def test_group_norm_is_each_samples_own() -> None:
    layout, x = voxels(), draw(sum(LENGTHS), 6)
    for rows, part in zip(x.split(LENGTHS), sample_group_norm(x, layout, 2).split(LENGTHS), strict=True):
        if len(rows):
            assert torch.allclose(part, F.group_norm(rows.T[None], 2)[0].T, atol=1e-10)


def test_windows_hold_their_voxels_and_no_others() -> None:
    layout = voxels()
    found = windows(layout, 4, 2)
    cell = torch.cat([layout.index[:, None], (coords_of(layout) + 2) // 4], 1)[found.order]
    for rows in cell.split(found.layout.lengths_list):
        assert (rows == rows[0]).all()
    assert found.layout.batch_size == len(cell.unique(dim=0))
    assert torch.equal(found.order[found.inverse], torch.arange(layout.rows))


def test_children_follow_each_other() -> None:
    found = children(Packed.of_lengths([1, 1], torch.tensor([[1, 2, 3], [0, 0, 0]])))
    assert found.lengths_list == [8, 8]
    assert coords_of(found)[:3].tolist() == [[2, 4, 6], [2, 4, 7], [2, 5, 6]]
    assert coords_of(found)[8:11].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_a_large_box_is_searched_and_not_tabled(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = neighbours(voxels()).table
    monkeypatch.setattr("fewstep_shapes3d.sparse.geometry.TABLE_LIMIT", 10)
    assert torch.equal(neighbours(voxels()).table, expected)


def test_derived_data_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    plain = Packed.once
    monkeypatch.setattr(
        Packed,
        "once",
        lambda self, key, build, beside=None: plain(
            self, key, lambda: (built.append((id(self), key, id(beside))), build())[1], beside
        ),
    )
    layout = voxels()
    for _ in range(3):
        for op, args in cases(layout).values():
            op(*args)
    assert len(built) == len(set(built))
    assert len(built) > 5


def test_nothing_at_all() -> None:
    layout = Packed.of_lengths([0, 0], torch.zeros(0, 3, dtype=torch.int64))
    for name, (op, args) in cases(layout).items():
        if name != "cross":
            assert op(*args).numel() == 0, name


def test_half_precision() -> None:
    for name, (op, args) in cases(voxels([1, 17, 0, 200, 63])).items():
        if name != "cross":
            half, full = op(*(a.half() for a in args)), op(*args)
            assert half.dtype == torch.float16
            assert (half - full).abs().max() < 2e-2 * full.abs().max(), name


def test_every_op_has_an_oracle_that_does_everything() -> None:
    for op in ("varlen_attention", "windowed_attention", "submanifold_conv"):
        oracle = kernels(op)[-1]
        assert (oracle.backend, oracle.provides) == ("reference", {"forward", "backward", "jvp"})


def twice() -> Packed:
    return Packed.of_lengths([2], torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: submanifold_conv(draw(2, 3), draw(5, 3, 3, 3, 3), None, twice()), "each voxel once"),
        (lambda: submanifold_conv(draw(2, 3), draw(5, 2, 2, 2, 3), None, twice()), "odd"),
        (lambda: submanifold_conv(draw(2, 4), draw(5, 3, 3, 3, 3), None, twice()), "shape of x"),
        (lambda: submanifold_conv(draw(2, 3), draw(5, 3, 3, 3), None, twice()), "shape of weight"),
        (lambda: submanifold_conv(draw(2, 3).half(), draw(5, 3, 3, 3, 3), None, twice()), "one type"),
        (lambda: windowed_attention(*[draw(2, 1, 4)] * 3, Packed.of_lengths([2]), 4), "layout.coords"),
        (lambda: windowed_attention(*[draw(2, 1, 4)] * 3, twice(), 0), "window size"),
        (lambda: varlen_attention(*[draw(3, 1, 4)] * 3, twice(), twice()), "shape of q"),
        (lambda: varlen_attention(*[draw(2, 1, 4)] * 3, twice(), Packed.of_lengths([1, 1])), "samples"),
        (lambda: varlen_attention(draw(2, 1, 4), *[draw(2, 2, 4)] * 2, twice(), twice()), "heads"),
        (lambda: sample_group_norm(draw(2, 3), twice(), 2), "multiple of groups"),
        (lambda: pool_mean(draw(3, 3), pooling(twice())), "shape of x"),
        (lambda: Packed.of_index(torch.tensor([0, 1, 0])), "ascending"),
        (lambda: Packed.of_index(torch.tensor([0, 3]), batch_size=2), "0 to 1"),
        (lambda: Packed.of_lengths([2], torch.zeros(3, 3)), "layout.coords"),
        (lambda: Packed.of_lengths([2], torch.zeros(2, 3, device="meta")), "device of layout.coords"),
    ],
)
def test_what_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(FewstepError, match=words):
        call()


def test_equal_lengths_are_one_call_of_sdpa() -> None:
    named = {kernel.name: kernel for kernel in kernels("varlen_attention")}
    layout, keys = Packed.of_lengths([5, 5, 5]), Packed.of_lengths([3, 3, 3])
    q, k, v = draw(15, 2, 4), draw(9, 2, 4, seed=1), draw(9, 2, 4, seed=2)
    assert dispatch("varlen_attention", q, k, v, layout, keys).name == "equal-sdpa"
    wanted = named["reference"].run(q, k, v, layout, keys)
    torch.testing.assert_close(named["equal-sdpa"].run(q, k, v, layout, keys), wanted)
    assert named["equal-sdpa"].supports(q, k, v, layout, Packed.of_lengths([2, 3, 4]))
    dual = torch.func.jvp(lambda q: varlen_attention(q, k, v, layout, keys), (q,), (q,))[1]
    expected = torch.func.jvp(lambda q: named["reference"].run(q, k, v, layout, keys), (q,), (q,))[1]
    torch.testing.assert_close(dual, expected)


def test_attention_by_sample_has_the_oracles_values_and_gradients() -> None:
    layout, keys = Packed.of_lengths([7, 1, 30]), Packed.of_lengths([3, 9, 2])
    inputs = [draw(38, 2, 4), draw(14, 2, 4, seed=1), draw(14, 2, 4, seed=2)]
    outs, grads = [], []
    for run in (by_sample, kernels("varlen_attention")[-1].run):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outs.append(run(*leaves, layout, keys))
        grads.append(torch.autograd.grad(outs[-1].square().sum(), leaves))
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("lengths", "why"),
    [([9000, 3000], None), ([2000, 2000], "rows a sample"), ([3000] * 17, "more than 16"), ([9000, 0], "empty")],
)
def test_by_sample_wants_few_long_samples(lengths: list[int], why: str | None) -> None:
    found = few_and_long(Packed.of_lengths(lengths), Packed.of_lengths([5] * len(lengths)))
    assert found is None if why is None else why in (found or "")
