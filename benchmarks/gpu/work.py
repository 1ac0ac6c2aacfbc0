"""How much a kernel must do, and the least time that takes: closed forms, held by tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Against one forward: five products in place of two; six in place of two for value and tangent together.
ATTENTION = {"forward": 1.0, "backward": 2.5, "value+tangent": 3.0}
# Gradients of the input and of the weight cost a forward each; value and tangent are three bilinear products.
CONVOLUTION = {"forward": 1.0, "backward": 2.0, "forward+backward": 3.0, "value+tangent": 3.0}
# Tensors that go through memory, of the size of q and of the size of k: values, then gradients, then tangents.
_TRAFFIC = {"forward": (2, 2), "backward": (4, 4), "value+tangent": (4, 4)}


def attention_flops(
    q_lengths: Sequence[int], k_lengths: Sequence[int], heads: int, width: int, what: str = "forward"
) -> float:
    """4 sum(Lq Lk) H D for a forward: two products, two operations each."""
    pairs = sum(m * n for m, n in zip(q_lengths, k_lengths, strict=True))
    return 4.0 * pairs * heads * width * ATTENTION[what]


def attention_bytes(rows: int, keys: int, heads: int, width: int, itemsize: int, what: str = "forward") -> float:
    """Each operand and each result once: q, o and k, v; in the backward also their gradients, with o and do."""
    queries, others = _TRAFFIC[what]
    return float((queries * rows + others * keys) * heads * width * itemsize)


def convolution_flops(pairs: int, inner: int, outer: int, what: str = "forward") -> float:
    """2 Ci Co for each pair of neighbours that exists."""
    return 2.0 * pairs * inner * outer * CONVOLUTION[what]


def convolution_bytes(
    rows: int, inner: int, outer: int, kernel: int, itemsize: int, offsets: int, what: str = "forward"
) -> float:
    """Input, weight, output and the int32 map once for each product of the pass."""
    once = (rows * (inner + outer) + offsets * inner * outer) * itemsize + 4 * rows * kernel
    return float(once * CONVOLUTION[what])


@dataclass(frozen=True)
class Roof:
    """What the machine was measured to do: TFLOP/s by type, GB/s of a copy (read and write counted)."""

    tflops: Mapping[str, float] = field(default_factory=dict)
    gbs: float = 0.0

    def least_ms(self, flops: float, moved: float, dtype: str) -> float:
        """The larger of operations over the rate of products and bytes over bandwidth; 0 where nothing is known."""
        rate = self.tflops.get(dtype, 0.0)
        by_rate = flops / rate / 1e9 if rate else 0.0
        return max(by_rate, moved / self.gbs / 1e6 if self.gbs else 0.0)

    def share(self, flops: float, moved: float, dtype: str, ms: float) -> float | None:
        """Least time over measured time; None where nothing is known."""
        return self.least_ms(flops, moved, dtype) / ms or None if ms else None


def tflops(flops: float, ms: float) -> float | None:
    """Operations over milliseconds, in 10^12 a second; None where none were counted."""
    return flops / ms / 1e9 if flops and ms else None


def gbs(moved: float, ms: float) -> float | None:
    """Bytes over milliseconds, in 10^9 a second; None where none were counted."""
    return moved / ms / 1e6 if moved and ms else None
