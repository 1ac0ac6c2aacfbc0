"""Matrix products on plain tensors, through whichever of torch's two CPU libraries is the faster one.

torch multiplies float32 matrices with MKL, which uses half the width of an AMD processor with AVX-512; its convolutions
go to oneDNN, which uses all of it. There, a large product runs as a 1x1 convolution: twice as fast on a Zen 5. On
every other machine, and inside torch.compile, these are ordinary products.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fewstep.ops.table import forced

SMALLEST = 2**21  # multiplications below which the detour costs more than it saves
BATCH = 128  # rows per image in ``row_sum``


@lru_cache(maxsize=1)
def half_width() -> bool:
    """Whether torch's matrix products leave half of the processor's vector width unused."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()[:4096]
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return amd and wide and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def pays(rows: int, inner: int, columns: int) -> bool:
    """Whether [rows, inner] by [inner, columns] is faster as a convolution: many rows, no narrow side."""
    narrow = min(inner, columns)
    return rows >= BATCH and narrow >= 32 and narrow % 16 == 0 and rows * inner * columns >= SMALLEST


def _detours(a: Tensor, rows: int, inner: int, columns: int) -> bool:
    if a.dtype != torch.float32 or a.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return half_width() and forced() != "reference" and pays(rows, inner, columns)


def _image(x: Tensor, batch: int = 1) -> Tensor:
    """[M, C] as a channels-last picture [batch, C, M / batch, 1] of the same memory."""
    return x.contiguous().view(batch, -1, 1, x.shape[1]).permute(0, 3, 1, 2)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b' + bias: [M, K] and [N, K] to [M, N]."""
    if not _detours(a, len(a), a.shape[1], len(b)):
        return a @ b.T if bias is None else torch.addmm(bias, a, b.T)
    # Dilation changes nothing in a 1x1 kernel, but without it torch sends one-thread convolutions back to MKL.
    out = F.conv2d(_image(a), b.contiguous()[:, :, None, None], bias, dilation=2)
    return out.permute(0, 2, 3, 1).reshape(len(a), len(b))


def row_sum(a: Tensor, b: Tensor) -> Tensor:
    """a' b, the sum over rows of their outer products: [M, N] and [M, K] to [N, K]."""
    (rows, n), k = a.shape, b.shape[1]
    if not _detours(a, rows, n, k):
        return a.T @ b
    whole = rows - rows % BATCH
    images = (_image(x[:whole], whole // BATCH) for x in (b, a))
    out: Tensor = conv2d_weight(next(images), (n, k, 1, 1), next(images), dilation=2)[:, :, 0, 0]
    return out if whole == rows else out.addmm(a[whole:].T, b[whole:])
