"""The op table: the two attention kernels agree, and dispatch knows what each cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fewstep.errors import FewstepError
from fewstep.ops import (
    Kernel,
    attention,
    carries_tangent,
    dispatch,
    explain,
    reference_attention,
    register,
    sdpa_attention,
    table,
)
from fewstep.ops.table import _TABLE


def qkv(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = ((2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8))
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]


def test_reference_is_attention_by_its_definition() -> None:
    q, k, v = qkv()
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.exp() / scores.exp().sum(-1, keepdim=True), v)
    assert torch.allclose(reference_attention(q, k, v), expected, atol=1e-12)


def test_kernels_agree_in_value_and_gradient() -> None:
    inputs = [x.requires_grad_() for x in qkv()]
    ours, theirs = reference_attention(*inputs), sdpa_attention(*inputs)
    assert torch.allclose(ours, theirs, atol=1e-12)
    seed = torch.randn_like(ours)
    pairs = zip(torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(theirs, inputs, seed), strict=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


def test_reference_keeps_half_precision_type() -> None:
    q, k, v = qkv(torch.float16)
    assert reference_attention(q, k, v).dtype == torch.float16


def test_plain_call_takes_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_OPS", raising=False)
    assert dispatch("attention", *qkv()).name == "sdpa"


def seen_kernels(transform: str) -> list[tuple[str, str | None]]:
    """Which kernel is taken, and why sdpa is not, inside a transform."""
    found: list[tuple[str, str | None]] = []
    x, _, _ = qkv()

    def loss(q: Tensor) -> Tensor:
        found.append((dispatch("attention", q, q, q).name, explain("attention", q, q, q)["sdpa"]))
        return attention(q, q, q).square().sum()

    def pushed(q: Tensor) -> Tensor:
        return torch.func.jvp(loss, (q,), (torch.ones_like(q),))[1]

    run = {
        "none": lambda: loss(x),
        "grad": lambda: torch.func.grad(loss)(x),
        "jvp": lambda: pushed(x),
        "grad of jvp": lambda: torch.func.grad(pushed)(x),
        "jvp of grad": lambda: torch.func.jvp(torch.func.grad(loss), (x,), (x,)),
        "jvp of jvp": lambda: torch.func.jvp(pushed, (x,), (x,)),
        "vmap of jvp": lambda: torch.func.vmap(pushed)(torch.stack([x, x])),
        "jvp of vmap": lambda: torch.func.jvp(torch.func.vmap(loss), (x[None],), (x[None],)),
        "autograd of jvp": lambda: pushed(x.clone().requires_grad_()).backward(),
        "dual numbers": lambda: _dual(loss, x),
    }
    run[transform]()
    return found


def _dual(loss: object, x: Tensor) -> None:
    with torch.autograd.forward_ad.dual_level():
        loss(torch.autograd.forward_ad.make_dual(x, x))  # type: ignore[operator]


NESTED = {
    "jvp of grad": lambda f, x: torch.func.jvp(torch.func.grad(f), (x,), (x,))[1],
    "jvp of a closure's grad": lambda f, x: torch.func.jvp(
        lambda y: torch.func.grad(lambda z: f(z, y))(x * 0.5), (x,), (x,)
    )[1],
    "jvp of jvp": lambda f, x: torch.func.jvp(lambda y: torch.func.jvp(f, (y,), (x,))[1], (x,), (x,))[1],
    "jvp of vmap": lambda f, x: torch.func.jvp(torch.func.vmap(f), (x[None],), (x[None],))[1],
    "vmap of jvp": lambda f, x: torch.func.vmap(lambda y: torch.func.jvp(f, (y,), (x,))[1])(x[None]),
    "grad of jvp": lambda f, x: torch.func.grad(lambda y: torch.func.jvp(f, (y,), (x,))[1])(x),
    "dual numbers in grad": lambda f, x: _dual_gradient(f, x),
}


# Only the innermost transform shows there, so the fused kernel is chosen; torch then refuses the tangent.
REFUSED = {"dual numbers in grad"}


def _dual_gradient(f: Any, x: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        found = torch.func.grad(f)(forward_ad.make_dual(x, x))
        return forward_ad.unpack_dual(found).tangent


@pytest.mark.parametrize("transform", list(NESTED))
def test_no_nesting_of_transforms_drops_a_tangent(transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = qkv()

    def loss(x: Tensor, y: Tensor = k) -> Tensor:
        return attention(x, y, y).square().sum()

    monkeypatch.setenv("FEWSTEP_OPS", "reference")
    wanted = NESTED[transform](loss, q)
    assert wanted is not None
    assert wanted.abs().max() > 1e-3
    monkeypatch.delenv("FEWSTEP_OPS")
    if transform in REFUSED:
        with pytest.raises(RuntimeError, match="forward AD"):
            NESTED[transform](loss, q)
        return
    got = NESTED[transform](loss, q)
    assert got is not None
    assert torch.allclose(got, wanted, atol=1e-10)


@pytest.mark.parametrize("transform", ["none", "grad"])
def test_fused_kernel_without_tangents(transform: str) -> None:
    assert seen_kernels(transform) == [("sdpa", None)]


@pytest.mark.parametrize(
    "transform",
    [
        "jvp",
        "grad of jvp",
        "jvp of grad",
        "jvp of jvp",
        "vmap of jvp",
        "jvp of vmap",
        "autograd of jvp",
        "dual numbers",
    ],
)
def test_fused_kernel_is_rejected_under_forward_mode(transform: str) -> None:
    for name, reason in seen_kernels(transform):
        assert name == "reference"
        assert reason is not None
        assert "tangent" in reason


def test_tangent_is_seen_only_where_it_is() -> None:
    x = torch.ones(3)
    found = []

    def f(y: Tensor) -> Tensor:
        found.append((carries_tangent(x), carries_tangent(x * 2), carries_tangent(y), carries_tangent(x, y + 1)))
        return y

    torch.func.jvp(f, (x,), (x,))
    assert found == [(False, False, True, True)]
    assert not carries_tangent(x)


def test_jvp_of_attention_against_differences() -> None:
    inputs, moves, h = qkv(), [torch.randn_like(x) for x in qkv()], 1e-6
    _, tangent = torch.func.jvp(attention, tuple(inputs), tuple(moves))
    ahead, behind = ([x + s * h * d for x, d in zip(inputs, moves, strict=True)] for s in (1, -1))
    assert torch.allclose(tangent, (attention(*ahead) - attention(*behind)) / (2 * h), atol=1e-8)


def test_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_OPS", "reference")
    assert dispatch("attention", *qkv()).name == "reference"
    assert list(explain("attention", *qkv())) == ["reference"]
    monkeypatch.setenv("FEWSTEP_OPS", "torch")
    assert dispatch("attention", *qkv()).name == "sdpa"
    assert seen_kernels("jvp")[0][0] == "reference"
    monkeypatch.setenv("FEWSTEP_OPS", "refrence")
    with pytest.raises(FewstepError, match=r"FEWSTEP_OPS 'refrence'.*did you mean 'reference'"):
        dispatch("attention", *qkv())


def test_the_order_and_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_TABLE, "double", {})
    everything = frozenset({"forward", "backward", "jvp"})
    register(Kernel("slow", "double", lambda x: x * 2, everything, backend="reference"))
    register(Kernel("fast", "double", lambda x: x + x, frozenset({"forward"}), 5, check=_only_square))
    square, line = torch.ones(2, 2), torch.ones(2)
    assert dispatch("double", square).name == "fast"
    assert explain("double", line) == {"fast": "needs a square", "slow": None}
    reason = explain("double", square.requires_grad_())["fast"]
    assert reason is not None
    assert "no backward" in reason
    with torch.no_grad():
        assert dispatch("double", square).name == "fast"


def _only_square(x: Tensor) -> str | None:
    return None if x.ndim == 2 else "needs a square"


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_TABLE, "odd", {})
    with pytest.raises(FewstepError, match=r"unknown op 'atention'.*did you mean 'attention'"):
        dispatch("atention")
    kernel = Kernel("only", "odd", torch.neg, frozenset({"forward"}), check=lambda x: "never")
    register(kernel)
    with pytest.raises(FewstepError, match="two kernels are called 'only'"):
        register(Kernel("only", "odd", torch.abs, frozenset({"forward"})))
    with pytest.raises(FewstepError, match=r"no kernel can serve this call \(only: never\)"):
        dispatch("odd", torch.ones(1))
    with pytest.raises(FewstepError, match="backend of kernel 'x'"):
        register(Kernel("x", "odd", torch.neg, frozenset({"forward"}), backend="cuda"))
    with pytest.raises(FewstepError, match="capability of kernel 'y' 'jpv'"):
        register(Kernel("y", "odd", torch.neg, frozenset({"jpv"})))


def test_two_names_of_one_kernel_are_one_entry(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    everything = frozenset({"forward", "backward", "jvp"})
    kernel = Kernel("doubled", "aliased", torch.neg, everything, backend="reference")

    class Names:
        def names(self, kind: str) -> list[str]:
            return ["plugin-doubled", "alias"]

        def get(self, kind: str, name: str) -> Names:
            return self

        def load(self) -> Kernel:
            return kernel

    monkeypatch.setattr(table, "registry", Names)
    monkeypatch.setitem(_TABLE, "aliased", {})
    table._load_plugins.__wrapped__()
    assert [k.name for k in table.kernels("aliased")] == ["doubled"]
    assert not [w for w in recwarn if "left out" in str(w.message)]
