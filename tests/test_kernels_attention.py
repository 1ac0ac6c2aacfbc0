"""Attention in Triton against the oracle in float64: values, gradients of every input, tangents, on ragged batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from fewstep_kernels.attention.schedule import slots, stretches
from fewstep_kernels.attention.tiles import WAYS
from fewstep_kernels.tuning import Tile
from fewstep_shapes3d.sparse.windows import partitioned, windowed_attention, windows
from kernel_helpers import DEVICE, TYPES, close, relative_rms
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep.ops import attention, dispatch, explain, varlen_attention
from fewstep.ops.attention import reference_attention, reference_varlen

pytestmark = pytest.mark.usefixtures("triton_only")

LENGTHS = [0, 1, 17, 63, 64, 65, 90]
KEYS = [3, 5, 0, 64, 1, 65, 33]
Tensors = tuple[Tensor, ...]


def draw(shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def derivatives(op: Any, inputs: list[Tensor], grad: Tensor, tangents: list[Tensor]) -> dict[str, Tensor]:
    """Value, gradient of each input, and value and tangent of one forward-mode pass."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = op(*leaves)
    gradients = torch.autograd.grad(out, leaves, grad)
    value, tangent = torch.func.jvp(op, tuple(inputs), tuple(tangents))
    named = {f"gradient {name}": g for name, g in zip("qkv", gradients, strict=True)}
    return {"value": out.detach(), "value with tangent": value, "tangent": tangent, **named}


def compare(op: Any, oracle: Any, inputs: list[Tensor], shape: torch.Size) -> None:
    dtype = inputs[0].dtype
    grad, *tangents = draw([tuple(shape), *(tuple(x.shape) for x in inputs)], dtype, seed=1)
    wide = [[x.double() for x in group] for group in (inputs, tangents)]
    wanted = derivatives(oracle, wide[0], grad.double(), wide[1])
    for what, got in derivatives(op, inputs, grad, tangents).items():
        close(got, wanted[what], dtype, what)


def packed(dtype: torch.dtype, heads: int, width: int, keys: list[int]) -> tuple[list[Tensor], Packed, Packed]:
    layout = Packed.of_lengths(LENGTHS, device=DEVICE)
    others = layout if keys is LENGTHS else Packed.of_lengths(keys, device=DEVICE)
    rows = [(n, heads, width) for n in (layout.rows, others.rows, others.rows)]
    return draw(rows, dtype), layout, others


@pytest.mark.parametrize("keys", [LENGTHS, KEYS], ids=["self", "cross"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "width"),
    [(2, 64), (3, 24), pytest.param(1, 96, marks=pytest.mark.slow), pytest.param(1, 128, marks=pytest.mark.slow)],
)
def test_ragged(dtype: torch.dtype, heads: int, width: int, keys: list[int]) -> None:
    inputs, layout, others = packed(dtype, heads, width, keys)
    assert dispatch("varlen_attention", *inputs, layout, others).name == "triton-varlen"
    compare(
        lambda *x: varlen_attention(*x, layout, others),
        lambda *x: reference_varlen(*x, layout, others),
        inputs,
        inputs[0].shape,
    )


@pytest.mark.parametrize("width", [32, 64, 128])
def test_long(width: int) -> None:
    layout = Packed.of_lengths([300], device=DEVICE)
    inputs = draw([(300, 1, width)] * 3, torch.float16)
    compare(
        lambda *x: varlen_attention(*x, layout, layout),
        lambda *x: reference_varlen(*x, layout, layout),
        inputs,
        inputs[0].shape,
    )


def test_deterministic_backward_gives_the_same_bits_and_the_same_gradient() -> None:
    inputs, layout, others = packed(torch.float32, 2, 64, KEYS)
    (grad,) = draw([tuple(inputs[0].shape)], torch.float32, 1)

    def gradients(leaves: list[Tensor], run: Any) -> Tensors:
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        return torch.autograd.grad(run(*leaves, layout, others), leaves, grad.to(leaves[0].dtype))

    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(inputs, varlen_attention) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    wanted = gradients([x.double() for x in inputs], reference_varlen)
    for a, b, c in zip(first, second, wanted, strict=True):
        assert torch.equal(a, b)
        close(a, c, torch.float32)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_few_keys_are_summed_over_stretches_of_queries(
    deterministic: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some samples have fewer queries than there are stretches, and one has none."""
    monkeypatch.setattr("fewstep_kernels.attention.launch.stretches", lambda *_: 3)
    inputs, layout, others = packed(dtype, 2, 32, KEYS)
    (grad,) = draw([tuple(inputs[0].shape)], dtype, 1)
    torch.use_deterministic_algorithms(deterministic)
    try:
        leaves = [x.requires_grad_() for x in inputs]
        got = torch.autograd.grad(varlen_attention(*leaves, layout, others), leaves, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    wanted = torch.autograd.grad(reference_varlen(*wide, layout, others), wide, grad.double())
    for ours, right in zip(got, wanted, strict=True):
        close(ours, right, dtype)


def test_queries_are_cut_where_programs_would_wait_for_a_last_few() -> None:
    # 8192 queries to 1374 keys, 16 heads: 11 tiles of 128 keys. Two waves, of which the second is a third full.
    assert stretches(11 * 16, slots(torch.device("cpu"), 8), 8192 // 64) == 3
    assert stretches(64 * 16, 132, 8192 // 64) == 1  # itself: 7.8 waves
    assert stretches(11 * 16, 132, 20) == 2  # short ones are not cut into pieces of fewer than 8 blocks
    assert stretches(1, 132, 10**6) == 8
    assert stretches(5000, 132, 3) == 1
    assert slots(torch.device("cpu"), 4) == 264


def test_both_ways_of_a_backward_pass_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the faster one is taken; here, the second of the two."""
    inputs, layout, _ = packed(torch.float32, 1, 32, LENGTHS)
    (grad,) = draw([tuple(inputs[0].shape)], torch.float32, 1)
    seen: list[str] = []

    def measured(key: tuple[Any, ...], tiles: Sequence[Tile], run: Callable[[Tile], None]) -> Tile:
        if key[0] != "attention-backward":
            return tiles[0]
        for tile in tiles:
            run(tile)
            seen.append(tile.name)
        return tiles[1]

    monkeypatch.setattr("fewstep_kernels.attention.launch.chosen", measured)
    leaves = [x.requires_grad_() for x in inputs]
    got = torch.autograd.grad(varlen_attention(*leaves, layout, layout), leaves, grad)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    wanted = torch.autograd.grad(reference_varlen(*wide, layout, layout), wide, grad.double())
    for ours, right in zip(got, wanted, strict=True):
        close(ours, right, torch.float32)
    assert seen == [way.name for way in WAYS]


def test_slices_of_a_fused_projection_are_read_in_place() -> None:
    layout = Packed.of_lengths([40, 30], device=DEVICE)
    (qkv,) = draw([(70, 3, 2, 32)], torch.float32)
    q, k, v = qkv.unbind(1)
    wanted = reference_varlen(*(x.double() for x in (q, k, v)), layout, layout)
    close(varlen_attention(q, k, v, layout, layout), wanted, torch.float32)


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_are_read_where_they_are(shift: int) -> None:
    generator = torch.Generator().manual_seed(3)
    cells = torch.cartesian_prod(*[torch.arange(9)] * 3)
    coords = torch.cat([cells[torch.randperm(len(cells), generator=generator)[:n]] for n in (150, 0, 1)])
    layout = Packed.of_lengths([150, 0, 1], coords.to(DEVICE))
    inputs = draw([(151, 2, 32)] * 3, torch.float32)
    assert dispatch("windowed_attention", *inputs, layout, 4, shift).name == "triton-windowed"

    def oracle(*x: Tensor) -> Tensor:
        found = windows(layout, 4, shift)
        inner = reference_varlen(*(y[found.order] for y in x), found.layout, found.layout)
        return inner[found.inverse]

    compare(lambda *x: windowed_attention(*x, layout, 4, shift), oracle, inputs, inputs[0].shape)
    close(partitioned(*inputs, layout, 4, shift), oracle(*(x.double() for x in inputs)), torch.float32)


@pytest.mark.parametrize("keys", [40, 77])
def test_dense(keys: int) -> None:
    inputs = draw([(2, 40, 2, 32), (2, keys, 2, 32), (2, keys, 2, 32)], torch.float32)
    assert dispatch("attention", *inputs).name == "triton-dense"
    compare(attention, reference_attention, inputs, inputs[0].shape)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_tangents_of_some_inputs_only(which: tuple[int, ...]) -> None:
    layout = Packed.of_lengths([20, 13], device=DEVICE)
    inputs = draw([(33, 1, 32)] * 3, torch.float32)
    directions = draw([(33, 1, 32)] * 3, torch.float32, 1)

    def moved(op: Any, given: list[Tensor], pushed: list[Tensor]) -> Tensor:
        def f(*some: Tensor) -> Tensor:
            x = list(given)
            for i, one in zip(which, some, strict=True):
                x[i] = one
            return op(*x, layout, layout)

        return torch.func.jvp(f, tuple(given[i] for i in which), tuple(pushed[i] for i in which))[1]

    wanted = moved(reference_varlen, [x.double() for x in inputs], [x.double() for x in directions])
    close(moved(varlen_attention, inputs, directions), wanted, torch.float32)


def test_one_pass_gives_value_with_graph_and_tangent() -> None:
    """As ``Step.jvp`` uses it: forward mode over x, reverse mode over a weight, one launch for value and tangent."""
    layout = Packed.of_lengths([20, 13], device=DEVICE)
    x, d, weight = draw([(33, 2, 32), (33, 2, 32), (32, 32)], torch.float32)

    def run(op: Any, x: Tensor, d: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        weight = weight.clone().requires_grad_()
        value, tangent = torch.func.jvp(lambda x: op(x @ weight, x, x, layout, layout), (x,), (d,))
        assert tangent.requires_grad
        return value.detach(), tangent.detach(), *torch.autograd.grad((value + tangent.detach()).sum(), weight)

    wanted = run(reference_varlen, x.double(), d.double(), weight.double())
    for got, right in zip(run(varlen_attention, x, d, weight), wanted, strict=True):
        close(got, right, torch.float32)


def test_the_gradient_of_a_tangent_is_right() -> None:
    layout = Packed.of_lengths([9, 13], device=DEVICE)
    x, d = draw([(22, 1, 16)] * 2, torch.float32)

    def gradient(op: Any, x: Tensor, d: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        value, tangent = torch.func.jvp(lambda x: op(x, x, x, layout, layout), (x,), (d,))
        return torch.autograd.grad((value * tangent).sum(), x)[0]

    wanted = gradient(reference_varlen, x.double(), d.double())
    assert relative_rms(gradient(varlen_attention, x, d), wanted) < 1e-5


def test_the_gradient_of_a_gradient_is_right() -> None:
    layout = Packed.of_lengths([9, 13], device=DEVICE)
    q, k, v = draw([(22, 1, 16)] * 3, torch.float32)

    def twice(op: Any, *inputs: Tensor) -> Tensor:
        leaves = [x.clone().requires_grad_() for x in inputs]
        (first,) = torch.autograd.grad(op(*leaves, layout, layout).square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaves[1])[0]

    wanted = twice(reference_varlen, *(x.double() for x in (q, k, v)))
    assert relative_rms(twice(varlen_attention, q, k, v), wanted) < 1e-5


def test_function_has_its_own_jvp() -> None:
    """For whoever calls the Function itself with dual numbers."""
    from fewstep_kernels.attention.function import Attention
    from fewstep_kernels.attention.schedule import Sequences

    layout = Packed.of_lengths([9, 13], device=DEVICE)
    inputs, directions = (draw([(22, 1, 16)] * 3, torch.float32, seed) for seed in (0, 1))

    def call(*x: Tensor) -> Tensor:
        out: Any = Attention.apply(*x, Sequences(layout, layout))
        return out[0]

    wide = [tuple(x.double() for x in group) for group in (inputs, directions)]
    wanted = torch.func.jvp(lambda *x: reference_varlen(*x, layout, layout), *wide)[1]
    close(torch.func.jvp(call, tuple(inputs), tuple(directions))[1], wanted, torch.float32)


def test_inside_torch_func() -> None:
    layout = Packed.of_lengths([9, 4], device=DEVICE)
    (x,) = draw([(13, 1, 16)], torch.float32)
    seen: list[str | None] = []

    def loss(x: Tensor) -> Tensor:
        seen.append(explain("varlen_attention", x, x, x, layout, layout)["triton-varlen"])
        return varlen_attention(x, x, x, layout, layout).square().sum()

    def oracle(x: Tensor) -> Tensor:
        return reference_varlen(x, x, x, layout, layout).square().sum()

    close(torch.func.grad(loss)(x), torch.func.grad(oracle)(x.double()), torch.float32)
    nested = torch.func.jvp(torch.func.grad(loss), (x,), (x,))[1]
    # The oracle serves it, whose own rounding is larger here than a kernel may have.
    close(nested, torch.func.jvp(torch.func.grad(oracle), (x,), (x,))[1], torch.float32)
    torch.func.vmap(loss)(x[None])
    assert seen == [None, "nested torch.func transforms", "within torch.func.vmap"]


@pytest.mark.parametrize("inner", [0, 1, 2])
def test_a_tangent_beneath_a_gradient_is_not_lost(inner: int) -> None:
    """jvp of grad, with the tangent on one input and the gradient of another: no tensor is wrapped twice."""
    layout = Packed.of_lengths([9, 4], device=DEVICE)
    tensors = draw([(13, 1, 16)] * 3, torch.float32)

    def mixed(attend: Any, moving: Tensor) -> Tensor:
        def loss(z: Tensor) -> Tensor:
            inputs = [moving] * 3
            inputs[inner] = z
            return attend(*inputs, layout, layout).square().sum()

        return torch.func.grad(loss)(tensors[inner].to(moving.dtype))

    x, move = tensors[0] * 0.5, tensors[1]
    got = torch.func.jvp(lambda y: mixed(varlen_attention, y), (x,), (move,))[1]
    wide = torch.func.jvp(lambda y: mixed(reference_varlen, y), (x.double(),), (move.double(),))[1]
    close(got, wide, torch.float32)


def test_no_length_is_compiled_in() -> None:
    """A second use with other lengths must not compile again: lengths come as tensors, the rest from the model."""
    from fewstep_kernels.attention.shipped import KERNELS

    for kernel in set(KERNELS.values()):
        code = getattr(kernel, "fn", kernel).__code__
        arguments = code.co_varnames[: code.co_argcount]
        assert {n for n in arguments if n.isupper()} <= {
            "HEAD", "WIDTH", "BLOCK_M", "BLOCK_N", "INDEXED", "UPCAST", "PRECISION", "FIRST", "AGAIN",
            "ATOMIC", "HAS_Q", "HAS_K", "HAS_V",
        }  # fmt: skip
        # The one integer that counts rows is kept out of Triton's specialisation.
        assert "lse_stride" in arguments
        if DEVICE == "cuda":
            assert [p.name for p in kernel.params if p.do_not_specialize] == ["lse_stride"]


LAYOUT = Packed.of_lengths([2, 3])
X = torch.zeros(5, 2, 16)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((X.int(), X.int(), X.int()), "type of q: got 'torch.int32'; accepted: a floating-point type"),
        ((X, X.half(), X), "types of q, k, v: got .*; accepted: one type"),
        ((X[:4], X, X), r"shape of q: got \(4, 2, 16\)"),
        ((X, X[:, :1], X[:, :1]), "heads of q, k, v"),
        ((X.to("meta"), X, X), r"devices of q, k, v: got \['meta', 'cpu', 'cpu'\]; accepted: one device"),
    ],
    ids=["integer", "mixed types", "rows", "heads", "device"],
)
def test_misuse_is_refused_before_a_launch(inputs: Tensors, message: str) -> None:
    with pytest.raises(FewstepError, match=message):
        varlen_attention(*inputs, LAYOUT, LAYOUT)
    with pytest.raises(FewstepError, match="non-decreasing"):
        Packed(torch.tensor([0, 3, 2]))


def test_reasons() -> None:
    wide = torch.zeros(5, 2, 160, device=DEVICE)
    layout = LAYOUT.to(DEVICE)
    assert "160 channels" in (explain("varlen_attention", wide, wide, wide, layout, layout)["triton-varlen"] or "")
    double = X.to(DEVICE).double()
    reason = explain("varlen_attention", double, double, double, layout, layout)["triton-varlen"]
    assert reason == "type torch.float64 (it has float16, bfloat16, float32)"
