"""What the tests of ops under torch.compile share: calls of each op, and a backend that keeps the graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fewstep.core.layout import Packed
from fewstep.ops import (
    attention,
    gated_residual,
    modulated_norm,
    qk_rms_norm,
    sample_group_norm,
    submanifold_conv,
    varlen_attention,
    windowed_attention,
)

CELLS = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1], [3, 3, 3]]
Op = Callable[[Tensor], Tensor]


def layouts(device: str = "cpu") -> tuple[Packed, Packed]:
    """Eight voxels of three samples, the second one empty, and five keys for them."""
    return Packed.of_lengths([5, 0, 3], torch.tensor(CELLS, device=device)), Packed.of_lengths([2, 3, 0], device=device)


def calls(dtype: torch.dtype, device: str = "cpu") -> dict[str, tuple[Op, Tensor]]:
    """By name, a function of one tensor that uses an op, and the tensor; the op's input is derived from it."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    (own, keys), rows = layouts(device), draw(8, 2, 16)
    k, weight, shift, gamma, turn = draw(5, 2, 16), draw(4, 3, 3, 3, 6), draw(3, 6), draw(2, 16), draw(8, 8)
    return {
        "attention": (lambda x: attention(x * 2, x, x.sin()), draw(2, 4, 2, 16)),
        "self": (lambda x: varlen_attention(x * 2, x, x.sin(), own, own), rows),
        "cross": (lambda x: varlen_attention(x * 2, k, k, own, keys), rows),
        "windows": (lambda x: windowed_attention(x * 2, x, x.sin(), own, 2, 1), rows),
        "convolution": (lambda x: submanifold_conv(x * 2, weight, None, own), draw(8, 6)),
        "group norm": (lambda x: sample_group_norm(x * 2, own, 2), draw(8, 6)),
        "modulated": (lambda x: modulated_norm(x * 2, shift, shift + 1, own), draw(8, 6)),
        "gated": (lambda x: gated_residual(x * 2, shift, x.sin(), own), draw(8, 6)),
        "heads": (lambda x: torch.cat(qk_rms_norm(x * 2, x, gamma, gamma, (turn, turn))), rows),
    }


def pushed(op: Op, x: Tensor) -> Op:
    """The function whose value is the tangent of ``op``, in a fixed direction."""
    move = torch.cos(torch.arange(x.numel(), device=x.device, dtype=x.dtype)).view(x.shape)
    return lambda y: torch.func.jvp(op, (y,), (move,))[1]


def gradient(function: Op, x: Tensor) -> Tensor:
    """Of the sum of squares of its value."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf).square().sum(), leaf)[0]


class Graphs:
    """A backend of torch.compile that runs what it gets and keeps it."""

    def __init__(self) -> None:
        self.seen: list[GraphModule] = []

    def __call__(self, graph: GraphModule, inputs: list[Any]) -> Any:
        self.seen.append(graph)
        return graph.forward

    def nodes(self) -> list[str]:
        """The torch ops of ours in the last graph."""
        targets = [str(node.target) for node in self.seen[-1].graph.nodes if node.op == "call_function"]
        return [name for name in targets if name.startswith("fewstep.")]
