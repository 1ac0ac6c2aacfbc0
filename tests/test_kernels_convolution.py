"""Submanifold convolution in Triton against the oracle in float64: values, gradients, tangents, on ragged batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fewstep_shapes3d.sparse.convolution import reference_convolution, submanifold_conv
from fewstep_shapes3d.sparse.geometry import neighbours
from kernel_helpers import DEVICE, TYPES, close, relative_rms
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep.ops import dispatch, explain

plan = pytest.importorskip("fewstep_kernels.convolution.plan", reason="Triton is not installed")
pairs, tiles = plan.pairs, plan.tiles
pytestmark = pytest.mark.usefixtures("triton_only")


def voxels(lengths: tuple[int, ...] = (70, 0, 1, 40), edge: int = 6) -> Packed:
    """Random distinct voxels, rows in random order."""
    generator = torch.Generator().manual_seed(1)
    cells = torch.cartesian_prod(*[torch.arange(edge)] * 3)
    coords = torch.cat([cells[torch.randperm(edge**3, generator=generator)[:n]] for n in lengths])
    return Packed.of_lengths(list(lengths), coords.to(DEVICE))


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def derivatives(op: Any, x: Tensor, w: Tensor, grad: Tensor, tangents: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    out = op(*leaves)
    gx, gw = torch.autograd.grad(out, leaves, grad)
    tangent = torch.func.jvp(op, (x, w), tangents)[1]
    return {"value": out.detach(), "gradient x": gx, "gradient w": gw, "tangent": tangent}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("ci", "co", "size"), [(16, 16, 3), (40, 72, 3), pytest.param(5, 3, 5, marks=pytest.mark.slow)]
)
def test_ragged(dtype: torch.dtype, ci: int, co: int, size: int) -> None:
    layout = voxels()
    x, w = draw(111, ci, dtype=dtype), draw(co, size, size, size, ci, dtype=dtype, seed=1)
    assert dispatch("submanifold_conv", x, w, layout).name == "triton-submanifold"
    grad, tx, tw = draw(111, co, dtype=dtype, seed=2), torch.flip(x, [0]), torch.flip(w, [0])
    got = derivatives(lambda x, w: submanifold_conv(x, w, None, layout), x, w, grad, (tx, tw))
    wide = [t.double() for t in (x, w, grad, tx, tw)]
    wanted = derivatives(lambda x, w: reference_convolution(x, w, layout), *wide[:3], (wide[3], wide[4]))
    for what, value in got.items():
        close(value, wanted[what], dtype, what)


def test_tangent_of_the_voxels_alone_with_a_graph_to_the_weights() -> None:
    layout = voxels()
    x, d, w = draw(111, 8), draw(111, 8, seed=3), draw(4, 3, 3, 3, 8, seed=1)

    def run(op: Any, x: Tensor, d: Tensor, w: Tensor) -> list[Tensor]:
        w = w.clone().requires_grad_()
        value, tangent = torch.func.jvp(lambda x: op(x, w), (x,), (d,))
        return [value.detach(), tangent.detach(), *torch.autograd.grad((value * tangent).sum(), w)]

    wanted = run(lambda x, w: reference_convolution(x, w, layout), x.double(), d.double(), w.double())
    for got, right in zip(run(lambda x, w: submanifold_conv(x, w, None, layout), x, d, w), wanted, strict=True):
        close(got, right, torch.float32)


def test_gradient_of_a_gradient() -> None:
    layout = voxels()
    x, w = draw(111, 8), draw(4, 3, 3, 3, 8, seed=1)

    def twice(op: Any, x: Tensor, w: Tensor) -> Tensor:
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        (first,) = torch.autograd.grad(op(x, w).square().sum(), w, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    wanted = twice(lambda x, w: reference_convolution(x, w, layout), x.double(), w.double())
    assert relative_rms(twice(lambda x, w: submanifold_conv(x, w, None, layout), x, w), wanted) < 1e-5


def test_the_gradient_of_the_weights_has_the_same_bits_each_time() -> None:
    layout = voxels()
    x, w = draw(111, 8), draw(4, 3, 3, 3, 8).requires_grad_()
    first, second = (torch.autograd.grad(submanifold_conv(x, w, None, layout).sum(), w)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("programs", [1, 10**6], ids=["one part", "many parts"])
def test_the_gradient_of_the_weights_in_half_precision(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one part it is rounded where it is stored, in several after their sum."""
    monkeypatch.setattr("fewstep_kernels.convolution.launch.PROGRAMS", programs)
    layout, x, grad = voxels(), draw(111, 8, dtype=torch.float16), draw(111, 4, dtype=torch.float16, seed=2)
    w = draw(4, 3, 3, 3, 8, dtype=torch.float16, seed=1).requires_grad_()
    (got,) = torch.autograd.grad(submanifold_conv(x, w, None, layout), w, grad)
    wide = w.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(reference_convolution(x.double(), wide, layout), wide, grad.double())
    close(got, wanted, torch.float16)


def test_strides_of_slices_are_respected() -> None:
    layout = voxels()
    both, w = draw(111, 20), draw(4, 3, 3, 3, 8, seed=1)
    wanted = reference_convolution(both[:, 4:12].double(), w.double(), layout)
    close(submanifold_conv(both[:, 4:12], w, None, layout), wanted, torch.float32)


@pytest.mark.parametrize("size", [3, 5])
def test_tiles_hold_every_pair_once(size: int) -> None:
    layout, block = voxels(), 16
    table, plan = neighbours(layout, size).table, tiles(layout, size, block)
    found = []
    for tile in range(len(plan.counts)):
        rows = plan.order[tile * block : (tile + 1) * block].tolist()
        for j in range(int(plan.counts[tile])):
            near, offset = plan.near[tile, j].tolist(), int(plan.offsets[tile, j])
            found += [(offset, row, other) for row, other in zip(rows, near, strict=True) if other >= 0]
            assert any(other >= 0 for other in near)
    wanted = [(k, p, int(table[k, p])) for k, p in (table >= 0).nonzero().tolist()]
    assert sorted(found) == sorted(wanted)
    listed = pairs(layout, size)
    for k, count in enumerate(listed.counts.tolist()):
        got = list(zip(listed.targets[k, :count].tolist(), listed.sources[k, :count].tolist(), strict=True))
        assert got == [(p, q) for offset, p, q in wanted if offset == k]


def test_sorting_lets_tiles_skip_offsets() -> None:
    """On a surface, as TRELLIS has them: voxels of a thin shell in random order."""
    cells = torch.cartesian_prod(*[torch.arange(48)] * 3)
    shell = cells[((cells - 23.5).square().sum(1).sqrt() - 20).abs() < 0.6]
    shuffled = shell[torch.randperm(len(shell), generator=torch.Generator().manual_seed(0))]
    layout = Packed.of_lengths([len(shell)], shuffled.to(DEVICE))
    present = neighbours(layout).table >= 0
    unsorted = torch.stack([part.any(1).sum() for part in present.split(64, 1)]).sum()
    assert int(tiles(layout, 3, 64).counts.sum()) < 0.8 * int(unsorted)


def test_a_kernel_of_size_one_needs_no_map() -> None:
    layout = voxels()
    x, w = draw(111, 6), draw(4, 1, 1, 1, 6, seed=1)
    close(submanifold_conv(x, w, None, layout), x.double() @ w.reshape(6, 4).double(), torch.float32)
    assert not any(isinstance(key, tuple) and key[0] == "neighbours" for key in layout._cache)


def test_inside_torch_func() -> None:
    layout, x, w = voxels(), draw(111, 4), draw(4, 3, 3, 3, 4)
    seen: list[str | None] = []

    def loss(x: Tensor) -> Tensor:
        seen.append(explain("submanifold_conv", x, w, layout)["triton-submanifold"])
        return submanifold_conv(x, w, None, layout).square().sum()

    def oracle(x: Tensor) -> Tensor:
        return reference_convolution(x, w.double(), layout).square().sum()

    close(torch.func.grad(loss)(x), torch.func.grad(oracle)(x.double()), torch.float32)
    nested = torch.func.jvp(torch.func.grad(loss), (x,), (x,))[1]
    close(nested, torch.func.jvp(torch.func.grad(oracle), (x.double(),), (x.double(),))[1], torch.float32)
    assert seen == [None, "nested torch.func transforms"]


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (torch.zeros(110, 4), torch.zeros(3, 3, 3, 3, 4), "shape of x"),
        (torch.zeros(111, 4), torch.zeros(3, 3, 3, 4), "shape of weight"),
        (torch.zeros(111, 4), torch.zeros(3, 2, 2, 2, 4), "kernel_size: got 2; accepted: an odd number"),
        (torch.zeros(111, 4), torch.zeros(3, 3, 3, 3, 4).half(), "accepted: one type"),
        (torch.zeros(111, 4).int(), torch.zeros(3, 3, 3, 3, 4).int(), "a floating-point type"),
        (torch.zeros(111, 4, device="meta"), torch.zeros(3, 3, 3, 3, 4), "one device"),
    ],
    ids=["rows", "weight", "even", "types", "integer", "device"],
)
def test_misuse_is_refused_before_a_launch(x: Tensor, w: Tensor, message: str) -> None:
    layout = voxels().to("cpu")
    with pytest.raises(FewstepError, match=message):
        submanifold_conv(x, w, None, layout)
