"""torch.compile neither breaks the graph at an op nor loses its tangent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.layout import Packed
from fewstep.ops import attention, sample_group_norm, submanifold_conv, varlen_attention, windowed_attention


def voxels() -> Packed:
    cells = torch.cartesian_prod(*[torch.arange(3)] * 3)
    return Packed.of_lengths([27, 8], torch.cat([cells, cells[:8]]))


LAYOUT, KEYS = voxels(), Packed.of_lengths([5, 3])
WEIGHT = torch.randn(4, 3, 3, 3, 4, generator=torch.Generator().manual_seed(1))
OPS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "attention": (attention, [(2, 5, 2, 8), (2, 6, 2, 8), (2, 6, 2, 8)]),
    "varlen self": (lambda q, k, v: varlen_attention(q, k, v, LAYOUT, LAYOUT), [(35, 2, 8)] * 3),
    "varlen cross": (lambda q, k, v: varlen_attention(q, k, v, LAYOUT, KEYS), [(35, 2, 8), (8, 2, 8), (8, 2, 8)]),
    "windows": (lambda q, k, v: windowed_attention(q, k, v, LAYOUT, 2, 1), [(35, 2, 8)] * 3),
    "convolution": (lambda x: submanifold_conv(x, WEIGHT, None, LAYOUT), [(35, 4)]),
    "group norm": (lambda x: sample_group_norm(x, LAYOUT, 2), [(35, 4)]),
}
BACKENDS = ["torch", pytest.param("triton", marks=pytest.mark.filterwarnings("ignore"))]


def draw(shapes: list[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def compiled(op: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    found: Callable[..., Any] = torch.compile(op, fullgraph=True, backend="aot_eager")
    return found


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_with_the_same_value_and_gradients(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("FEWSTEP_OPS", backend)
    op, shapes = OPS[name]

    def run(f: Callable[..., Tensor]) -> list[Tensor]:
        inputs = [x.requires_grad_() for x in draw(shapes, 0)]
        out = f(*inputs)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]

    for got, wanted in zip(run(compiled(op)), run(op), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_tangent_is_right(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences of the op itself in float64."""
    if backend == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("FEWSTEP_OPS", backend)
    op, shapes = OPS[name]
    x, d = draw(shapes, 0), draw(shapes, 1)
    tangent = compiled(lambda x, d: torch.func.jvp(op, tuple(x), tuple(d))[1])(x, d)
    monkeypatch.setenv("FEWSTEP_OPS", "reference")
    ahead, behind = ([a.double() + h * b.double() for a, b in zip(x, d, strict=True)] for h in (1e-5, -1e-5))
    if name == "convolution":
        wide = lambda y: submanifold_conv(y, WEIGHT.double(), None, LAYOUT)  # noqa: E731
        wanted = (wide(*ahead) - wide(*behind)) / 2e-5
    else:
        wanted = (op(*ahead) - op(*behind)) / 2e-5
    assert float(wanted.norm()) > 0.1
    assert float((tangent - wanted).norm() / wanted.norm()) < 1e-4
