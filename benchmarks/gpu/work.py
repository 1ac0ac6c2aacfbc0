"""The work of a kernel, and the shortest time it can take: closed forms, checked by tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Relative to one forward pass of two products: five for backward; six for value and tangent together.
ATTENTION = {"forward": 1.0, "backward": 2.5, "value+tangent": 3.0}
# Gradients of the input and of the weight cost one forward each; value and tangent take three bilinear products.
CONVOLUTION = {"forward": 1.0, "backward": 2.0, "forward+backward": 3.0, "value+tangent": 3.0}
# Tensors moved through memory, as (of the size of q, of the size of k).
_TRAFFIC = {"forward": (2, 2), "backward": (4, 4), "value+tangent": (4, 4)}


def attention_flops(
    q_lengths: Sequence[int], k_lengths: Sequence[int], heads: int, width: int, what: str = "forward"
) -> float:
    """4 sum(Lq Lk) H D for a forward pass: two products, two operations per multiply-add."""
    pairs = sum(m * n for m, n in zip(q_lengths, k_lengths, strict=True))
    return 4.0 * pairs * heads * width * ATTENTION[what]


def attention_bytes(rows: int, keys: int, heads: int, width: int, itemsize: int, what: str = "forward") -> float:
    """Each operand and result once: q, out, k, v for a forward; q, out, dout, dq, k, v, dk, dv for a backward."""
    queries, others = _TRAFFIC[what]
    return float((queries * rows + others * keys) * heads * width * itemsize)


def convolution_flops(pairs: int, inner: int, outer: int, what: str = "forward") -> float:
    """2 Ci Co for each existing pair of neighbours."""
    return 2.0 * pairs * inner * outer * CONVOLUTION[what]


def convolution_bytes(
    rows: int, inner: int, outer: int, kernel: int, itemsize: int, offsets: int, what: str = "forward"
) -> float:
    """Input, weight, output and the int32 neighbour map, once for each product of the pass."""
    once = (rows * (inner + outer) + offsets * inner * outer) * itemsize + 4 * rows * kernel
    return float(once * CONVOLUTION[what])


@dataclass(frozen=True)
class Roof:
    """The measured roofline: TFLOP/s by type, and GB/s of a copy, reads plus writes."""

    tflops: Mapping[str, float] = field(default_factory=dict)
    gbs: float = 0.0

    def least_ms(self, flops: float, moved: float, dtype: str) -> float:
        """The larger of operations over peak rate and bytes over bandwidth; 0 where nothing is known."""
        rate = self.tflops.get(dtype, 0.0)
        by_rate = flops / rate / 1e9 if rate else 0.0
        return max(by_rate, moved / self.gbs / 1e6 if self.gbs else 0.0)

    def share(self, flops: float, moved: float, dtype: str, ms: float) -> float | None:
        """Shortest possible time over measured time; None where nothing is known."""
        return self.least_ms(flops, moved, dtype) / ms or None if ms else None


def tflops(flops: float, ms: float) -> float | None:
    """Operations over milliseconds, in TFLOP/s; None where none were counted."""
    return flops / ms / 1e9 if flops and ms else None


def gbs(moved: float, ms: float) -> float | None:
    """Bytes over milliseconds, in GB/s; None where none were counted."""
    return moved / ms / 1e6 if moved and ms else None
