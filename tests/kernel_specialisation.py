"""Run by test_kernels_specialisation.py in a process without the interpreter: which binaries do launches ask for?

Triton's own binder tells what a launch is specialised on (types, divisibility, constants); nothing is compiled or run,
so no GPU is needed. Prints one line for each scenario: its name, the number of launches, and whether both uses agree.
"""

from __future__ import annotations

from typing import Any

import torch
from fewstep_kernels.attention import backward_jit, forward_jit, launch
from fewstep_kernels.attention.schedule import Sequences
from fewstep_kernels.convolution import conv_jit
from fewstep_kernels.convolution import launch as conv_launch
from fewstep_kernels.norms import gate, gate_jit, heads, heads_jit, modulation, modulation_jit
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from fewstep.layout import Packed

BACKEND = make_backend(GPUTarget("cuda", 90, 32))
SEEN: list[tuple[str, ...]] = []


class Recorder:
    """Stands for a kernel and notes the specialisation of each launch."""

    def __init__(self, kernel: Any) -> None:
        self.name, self.bind = kernel.__name__, create_function_from_signature(kernel.signature, kernel.params, BACKEND)

    def __getitem__(self, grid: Any) -> Any:
        return self.note

    def note(self, *args: Any, **options: Any) -> None:
        _, specialisation, chosen = self.bind(*args, **options)
        SEEN.append((self.name, str(specialisation), str(chosen)))


def record(*modules: Any) -> None:
    for module in modules:
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, JITFunction) and name.endswith("_kernel"):
                setattr(module, name, Recorder(kernel))


def attention(lengths: list[int]) -> None:
    layout = Packed.of_lengths(lengths)
    q, k, v = torch.zeros(layout.rows, 3, 2, 64, dtype=torch.float16).unbind(1)
    seq = Sequences(layout, layout)
    out, lse = launch.forward(q, k, v, seq)
    launch.tangent(q, k, v, q, k, v, seq)
    for deterministic in (True, False):
        launch.backward(q, k, v, out, lse, out, seq, deterministic)


def convolution(lengths: list[int]) -> None:
    cells = torch.cartesian_prod(*[torch.arange(8)] * 3)
    layout = Packed.of_lengths(lengths, torch.cat([cells[:n] for n in lengths]))
    near = conv_launch.TritonMap(layout, 3)
    x, matrices = torch.zeros(layout.rows, 128, dtype=torch.float16), torch.zeros(27, 128, 256, dtype=torch.float16)
    near.outer(x, near.convolve(x, matrices))


def norms(lengths: list[int]) -> None:
    """Each value, its gradients, and value and tangent; packed, and dense with as many samples of the last length."""
    layout = Packed.of_lengths(lengths)
    for where, shape in ((layout, (layout.rows,)), (None, (len(lengths), lengths[-1]))):
        qkv, gamma = torch.zeros(*shape, 3, 16, 64, dtype=torch.float16), torch.zeros(16, 64)
        x, six = torch.zeros(*shape, 1024, dtype=torch.float16), torch.zeros(len(lengths), 6144, dtype=torch.float16)
        shift, scale, factor = six.chunk(6, -1)[:3]
        calls = (
            (heads.qk_rms_norm, (*qkv.unbind(-3)[:2], gamma, gamma)),
            (lambda *a, where=where: modulation.modulated_norm(*a, where, 1e-6), (x, shift, scale)),
            (lambda *a, where=where: gate.gated_residual(*a, where), (x, factor, x)),
        )
        for run, tensors in calls:
            torch.func.jvp(run, tensors, tensors)
            inputs = [v.detach().requires_grad_() for v in tensors]
            found = run(*inputs)
            values = found if isinstance(found, tuple) else (found,)
            torch.autograd.grad(values, inputs, [torch.zeros_like(v) for v in values])


def binaries(scenario: Any, use: Any) -> list[tuple[str, ...]]:
    SEEN.clear()
    scenario(use)
    return list(SEEN)


if __name__ == "__main__":
    record(forward_jit, backward_jit, conv_jit, heads_jit, modulation_jit, gate_jit)
    first = binaries(attention, [300, 17, 400])
    for other in ([301, 0, 1, 4000], [512]):
        print("attention", len(first), binaries(attention, other) == first)
    first = binaries(convolution, [300, 17])
    for other in ([301, 0, 1, 400], [512]):
        print("convolution", len(first), binaries(convolution, other) == first)
    first = binaries(norms, [300, 17])
    for other in ([301, 0, 1, 400], [512], [63, 7]):
        print("norms", len(first), binaries(norms, other) == first)
