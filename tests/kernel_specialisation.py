"""Run by test_kernels_specialisation.py in a process without the interpreter: which binaries do launches ask for?

Triton's own binder tells what a launch is specialised on (types, divisibility, constants); nothing is run, so no GPU is
needed. Prints one line for each scenario: its name, the number of launches, and whether both uses agree. Last come the
binaries that the smallest of calls ask for, which are compiled, as the interpreter hides what a compiler refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from fewstep_kernels.attention import backward_jit, forward_jit, launch, windows, windows_jit
from fewstep_kernels.attention.schedule import Sequences
from fewstep_kernels.convolution import conv_jit, map_jit
from fewstep_kernels.convolution import launch as conv_launch
from fewstep_kernels.norms import gate, gate_jit, heads, heads_jit, modulation, modulation_jit
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from fewstep.core.layout import Packed

TARGET = GPUTarget("cuda", 90, 32)
BACKEND = make_backend(TARGET)
SEEN: list[tuple[str, ...]] = []
WANTED: dict[tuple[str, ...], tuple[ASTSource, dict[str, Any]]] = {}


class Recorder:
    """Stands for a kernel and notes the specialisation of each launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.name = kernel, f"{kernel.__module__}.{kernel.__name__}"
        self.bind = create_function_from_signature(kernel.signature, kernel.params, BACKEND)

    def __getitem__(self, grid: Any) -> Any:
        return self.note

    def note(self, *args: Any, **options: Any) -> None:
        bound, special, chosen = self.bind(*args, **options)
        signature = {name: kind for name, (kind, _) in zip(bound, special, strict=True)}
        constants = {(i,): value for i, value in enumerate(bound.values()) if special[i][0] == "constexpr"}
        hints = {(i,): BACKEND.parse_attr(hint) for i, (_, hint) in enumerate(special) if isinstance(hint, str)}
        SEEN.append((self.name, str(signature), str(constants), str(hints), str(chosen)))
        WANTED[SEEN[-1]] = ASTSource(self.kernel, signature, constants, hints), chosen


def record(*modules: Any) -> None:
    for module in modules:
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, JITFunction) and name.endswith("_kernel"):
                setattr(module, name, Recorder(kernel))


def attention(lengths: list[int], heads: int = 2, width: int = 64, fused: bool = True) -> None:
    """Each launch; with ``fused`` on slices of one projection."""
    layout = Packed.of_lengths(lengths)
    whole = torch.zeros(layout.rows, 3, heads, width, dtype=torch.float16)
    q, k, v = whole.unbind(1) if fused else whole.transpose(0, 1).contiguous()
    seq = Sequences(layout, layout)
    out, lse = launch.forward(q, k, v, seq)
    launch.tangent(q, k, v, q, k, v, seq)
    for deterministic in (True, False):
        launch.backward(q, k, v, out, lse, out, seq, deterministic)


def convolution(lengths: list[int], channels: int = 128) -> None:
    cells = torch.cartesian_prod(*[torch.arange(8)] * 3)
    layout = Packed.of_lengths(lengths, torch.cat([cells[:n] for n in lengths]))
    near = conv_launch.TritonMap(layout, 3)
    x = torch.zeros(layout.rows, channels, dtype=torch.float16)
    near.outer(x, near.convolve(x, torch.zeros(27, channels, 2 * channels, dtype=torch.float16)))


def windowed(lengths: list[int]) -> None:
    cells = torch.cartesian_prod(*[torch.arange(8)] * 3)
    layout = Packed.of_lengths(lengths, torch.cat([cells[:n] for n in lengths]))
    windows.layout_of = lambda begins: layout  # what is recorded writes no beginnings of windows
    windows.sequences(layout, 4, 2)


def norm_calls(lengths: list[int], count: int, width: int) -> Iterator[tuple[Any, Any, tuple[torch.Tensor, ...]]]:
    """Each op as it is, its direct way and tensors; packed, and dense with as many samples of the last length."""
    layout = Packed.of_lengths(lengths)
    for where, shape in ((layout, (layout.rows,)), (None, (len(lengths), lengths[-1]))):
        qkv, gamma = torch.zeros(*shape, 3, count, width, dtype=torch.float16), torch.zeros(count, width)
        x = torch.zeros(*shape, count * width, dtype=torch.float16)
        six = x.new_zeros(len(lengths), 6 * count * width)
        shift, scale, factor = six.chunk(6, -1)[:3]
        for run, direct, tensors, rest in (
            (heads.qk_rms_norm, heads.direct, (*qkv.unbind(-3)[:2], gamma, gamma), (None,)),
            (modulation.modulated_norm, modulation.direct, (x, shift, scale), (where, 1e-6)),
            (gate.gated_residual, gate.direct, (x, factor, x), (where,)),
        ):
            yield *(lambda *a, f=f, rest=rest: f(*a, *rest) for f in (run, direct)), tensors


def norms(lengths: list[int], count: int = 16, width: int = 64) -> None:
    """Each value, its gradients, and value and tangent."""
    for run, _, tensors in norm_calls(lengths, count, width):
        torch.func.jvp(run, tensors, tensors)
        inputs = [v.detach().requires_grad_() for v in tensors]
        found = run(*inputs)
        values = found if isinstance(found, tuple) else (found,)
        torch.autograd.grad(values, inputs, [torch.zeros_like(v) for v in values])


def direct(lengths: list[int], count: int = 16, width: int = 64) -> None:
    """Each value twice: by way of autograd, and directly."""
    for run, short, tensors in norm_calls(lengths, count, width):
        run(*tensors)
        short(*tensors)


def smallest(lengths: list[int]) -> None:
    """Every size and stride is 1 somewhere, which Triton makes a constant of the kernel."""
    attention(lengths, 1, 1, fused=False)
    convolution(lengths, 1)
    windowed(lengths)
    norms(lengths, 1, 1)


def binaries(scenario: Any, use: Any) -> list[tuple[str, ...]]:
    SEEN.clear()
    scenario(use)
    return list(SEEN)


def compiles(wanted: set[tuple[str, ...]]) -> bool:
    """Whether all these binaries can be made for sm_90. Raises what Triton raises for one that cannot."""
    return all(triton.compile(source, target=TARGET, options=given) for source, given in map(WANTED.get, wanted))


if __name__ == "__main__":
    record(forward_jit, backward_jit, windows_jit, conv_jit, map_jit, heads_jit, modulation_jit, gate_jit)
    for scenario, uses in (
        (attention, ([300, 17, 400], [301, 0, 1, 500], [512])),
        (attention, ([4000], [301, 0, 1, 5001], [4096])),  # queries in stretches, whose sums are float32
        (convolution, ([300, 17], [301, 0, 1, 400], [512])),
        (windowed, ([300, 17], [301, 0, 1, 400], [512])),
        (norms, ([300, 17], [301, 0, 1, 400], [512], [63, 7])),
    ):
        first = binaries(scenario, uses[0])
        for other in uses[1:]:
            print(scenario.__name__, len(first), binaries(scenario, other) == first)
    for width in (64, 1):
        pairs = binaries(lambda lengths, width=width: direct(lengths, width=width), [300, 17])
        print("direct", len(pairs), pairs[::2] == pairs[1::2])
    asked = set(binaries(smallest, [1]))
    print("smallest", len(asked), compiles(asked))
