"""Norms, modulation, gates and GELU as ops: the oracles against independent formulas, torch's kernels, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep.ops import (
    gated_residual,
    head_rms_norm,
    modulated_norm,
    qk_rms_norm,
)
from fewstep.ops.norms import fused_qk_rms_norm, reference_qk_rms_norm

LENGTHS = [4, 0, 1, 6]


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def heads() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draw(2, 5, 3, 8), draw(2, 7, 3, 8, seed=1), draw(3, 8, seed=2), draw(3, 8, seed=3)


def test_head_norm_by_its_definition() -> None:
    q, k, q_gamma, k_gamma = heads()
    for x, gamma, got in zip((q, k), (q_gamma, k_gamma), qk_rms_norm(q, k, q_gamma, k_gamma), strict=True):
        size = torch.einsum("blhd,blhd->blh", x, x).sqrt()
        assert torch.allclose(got, torch.einsum("blhd,hd,blh->blhd", x, gamma, math.sqrt(8) / size), atol=1e-12)
        assert torch.equal(head_rms_norm(x, gamma), got)


def test_torch_norm_agrees_in_value_gradient_and_tangent() -> None:
    inputs = tuple(x.requires_grad_() for x in heads())
    directions = tuple(draw(*x.shape, seed=7) for x in inputs)
    found = []
    for run in (reference_qk_rms_norm, fused_qk_rms_norm):
        values, tangents = torch.func.jvp(run, inputs, directions)
        gradients = torch.autograd.grad(values, inputs, [torch.ones_like(v) * v.detach() for v in values])
        found.append((*values, *tangents, *gradients))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("run", [reference_qk_rms_norm, fused_qk_rms_norm])
def test_zero_vectors_give_zeros(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    zeros, gamma = torch.zeros(1, 2, 1, 4), torch.ones(1, 4)
    assert all(torch.equal(x, zeros) for x in run(zeros, zeros, gamma, gamma))


def angles(length: int, width: int) -> tuple[Tensor, Tensor]:
    turn = torch.arange(length)[:, None] * 100.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return turn.cos(), turn.sin()


def test_rotary_turns_pairs_as_complex_numbers() -> None:
    q, _, q_gamma, k_gamma = heads()
    rotary = angles(5, 8)
    plain, turned = qk_rms_norm(q, q, q_gamma, k_gamma)[0], qk_rms_norm(q, q, q_gamma, k_gamma, rotary)[0]
    pairs = torch.view_as_complex(plain.unflatten(-1, (4, 2))) * torch.complex(*rotary)[:, None]
    assert torch.allclose(turned, torch.view_as_real(pairs).flatten(-2), atol=1e-12)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    one, gamma = draw(1, 1, 8), torch.ones(1, 8, dtype=torch.float64)
    q, k = qk_rms_norm(one.expand(6, 1, 8), one.flip(-1).expand(6, 1, 8), gamma, gamma, angles(6, 8))
    scores = torch.einsum("ihd,jhd->ij", q, k)
    assert torch.allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-12)
    assert scores[0].std() > 0.1


def rows() -> tuple[Tensor, Tensor, Packed]:
    """Packed rows, one projection of the time for each sample, and the layout."""
    return draw(sum(LENGTHS), 6), draw(len(LENGTHS), 12, seed=1), Packed.of_lengths(LENGTHS)


def test_modulated_norm_sample_by_sample() -> None:
    x, six, layout = rows()
    shift, scale = six.chunk(2, -1)
    got = modulated_norm(x, shift, scale, layout, 1e-3)
    for part, ours, a, b in zip(x.split(LENGTHS), got.split(LENGTHS), shift, scale, strict=True):
        centred = part - part.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-3).sqrt()
        assert torch.allclose(ours, normed * (1 + b) + a, atol=1e-12)
        dense = modulated_norm(part[None], a[None], b[None], eps=1e-3)
        assert torch.allclose(dense[0], ours, atol=1e-14)


def test_gate_sample_by_sample() -> None:
    x, six, layout = rows()
    y, gate = draw(len(x), 6, seed=4), six[:, 6:]
    got = gated_residual(x, gate, y, layout)
    for a, b, ours, g in zip(x.split(LENGTHS), y.split(LENGTHS), got.split(LENGTHS), gate, strict=True):
        assert torch.equal(ours, a + g * b)
        assert torch.equal(gated_residual(a[None], g[None], b[None])[0], ours)


def test_half_precision_is_cast_where_the_models_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_OPS", "reference")
    x, shift, scale = (v.half() for v in (draw(2, 5, 6), draw(2, 6, seed=1), draw(2, 6, seed=2)))
    normed = F.layer_norm(x.float(), (6,), eps=1e-6).half()
    assert torch.equal(modulated_norm(x, shift, scale), normed * (1 + scale[:, None]) + shift[:, None])
    wide = F.normalize(x.float(), dim=-1) * 6**0.5
    assert torch.equal(head_rms_norm(x, torch.ones(5, 6)), wide.half())


def test_types_promote_as_under_autocast() -> None:
    x, v = draw(2, 5, 6, dtype=torch.float32), draw(2, 6, dtype=torch.bfloat16)
    assert modulated_norm(x, v, v).dtype == torch.float32
    assert gated_residual(x, v, x.bfloat16()).dtype == torch.float32


X, V = torch.zeros(2, 5, 6), torch.zeros(2, 6)
Q, GAMMA = torch.zeros(2, 5, 3, 8), torch.zeros(3, 8)
TABLE = torch.zeros(5, 4)
LAYOUT = Packed.of_lengths([3, 2])
MISUSE: list[tuple[Callable[..., object], tuple[object, ...], str]] = [
    (modulated_norm, (X, V[:, :5], V), "shift"),
    (modulated_norm, (X, V, V[:1]), "scale"),
    (modulated_norm, (X[0], V, V), r"\[B, L, C\]"),
    (modulated_norm, (X[0], V, V, Packed.of_lengths([3, 3])), "T = 6"),
    (modulated_norm, (X.int(), V, V), "type of x"),
    (modulated_norm, (X, V.int(), V), "shift"),
    (modulated_norm, (X.to("meta"), V, V), "on meta"),
    (modulated_norm, (X[0].to("meta"), V, V, LAYOUT), "on meta"),
    (gated_residual, (X, V, X[:, :4]), "y"),
    (gated_residual, (X, V, X.to("meta")), "meta"),
    (gated_residual, (X, V, X.int()), "y"),
    (gated_residual, (X, V[:, :1], X), "gate"),
    (qk_rms_norm, (Q, Q, GAMMA[:2], GAMMA), "q_gamma"),
    (qk_rms_norm, (Q, Q, GAMMA, GAMMA.mT), "k_gamma"),
    (qk_rms_norm, (Q, Q.int(), GAMMA, GAMMA), "k: "),
    (qk_rms_norm, (Q, Q.to("meta"), GAMMA, GAMMA), "meta"),
    (qk_rms_norm, (Q, Q, GAMMA, GAMMA, (TABLE, TABLE[:4])), "rotary"),
    (qk_rms_norm, (Q, Q[:, :3], GAMMA, GAMMA, (TABLE, TABLE)), "beside k"),
    (qk_rms_norm, (Q[..., :7], Q[..., :7], GAMMA[:, :7], GAMMA[:, :7], (TABLE[:, :3], TABLE[:, :3])), "D even"),
    (head_rms_norm, (Q[0, 0], GAMMA), "q_gamma"),
]


@pytest.mark.parametrize(("op", "args", "text"), MISUSE)
def test_misuse_is_refused(op: Callable[..., object], args: tuple[object, ...], text: str) -> None:
    with pytest.raises(FewstepError, match=text):
        op(*args)
