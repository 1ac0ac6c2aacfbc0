"""Under torch.compile an op runs as it does without: same value, gradient and tangent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fewstep_shapes3d.sparse import sample_group_norm, submanifold_conv, windowed_attention
from fewstep_trellis.models import SLatFlowModel, SparseStructureFlowModel
from kernel_helpers import DEVICE
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.layout import Packed, add_rows
from fewstep.ops import attention, gated_residual, modulated_norm, qk_rms_norm, varlen_attention

CELLS = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1], [3, 3, 3]]
Op = Callable[[Tensor], Tensor]
pytestmark = pytest.mark.filterwarnings("ignore")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def calls(dtype: torch.dtype, device: str = "cpu") -> dict[str, tuple[Op, Tensor]]:
    """By name, a function of one tensor that computes before, in and after an op, and the tensor."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    own = Packed.of_lengths([5, 0, 3], torch.tensor(CELLS, device=device), device)
    keys, rows = Packed.of_lengths([2, 3, 0], device=device), draw(8, 2, 16)
    k, weight, shift, gamma, turn = draw(5, 2, 16), draw(4, 3, 3, 3, 6), draw(3, 6), draw(2, 16), draw(8, 8)
    return {
        "attention": (lambda x: attention(x * 2, x, x.sin()).sin(), draw(2, 4, 2, 16)),
        "self": (lambda x: varlen_attention(x * 2, x, x.sin(), own, own).sin(), rows),
        "cross": (lambda x: varlen_attention(x * 2, k, k, own, keys).sin(), rows),
        "windows": (lambda x: windowed_attention(x * 2, x, x.sin(), own, 2, 1).sin(), rows),
        "convolution": (lambda x: submanifold_conv(x * 2, weight, None, own).sin(), draw(8, 6)),
        "group norm": (lambda x: sample_group_norm(x * 2, own, 2).sin(), draw(8, 6)),
        "modulated": (lambda x: modulated_norm(x * 2, shift, shift + 1, own).sin(), draw(8, 6)),
        "gated": (lambda x: gated_residual(x * 2, shift, x.sin(), own).sin(), draw(8, 6)),
        "heads": (lambda x: torch.cat(qk_rms_norm(x * 2, x, gamma, gamma, (turn, turn))).sin(), rows),
    }


OPS = ["attention", "self", "windows", "convolution", "heads"]


def pushed(op: Op, x: Tensor) -> Op:
    """The function whose value is the tangent of ``op``, in a fixed direction."""
    move = torch.cos(torch.arange(x.numel(), device=x.device, dtype=x.dtype)).view(x.shape)
    return lambda y: torch.func.jvp(op, (y,), (move,))[1]


def gradient(function: Op, x: Tensor) -> Tensor:
    """Of the sum of squares of its value."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf).square().sum(), leaf)[0]


def alike(function: Op, x: Tensor, backend: str, within: float) -> None:
    """Value and gradient as without torch.compile."""
    wanted, slope = function(x), gradient(function, x)
    assert wanted.abs().max() > 1e-3
    torch.compiler.reset()
    # The first call, with a gradient, compiles for both.
    compiled = torch.compile(function, backend=backend)
    torch.testing.assert_close(gradient(compiled, x), slope, rtol=within, atol=within)
    torch.testing.assert_close(compiled(x), wanted, rtol=within, atol=within)


@pytest.mark.parametrize("name", OPS)
def test_an_op(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_OPS", raising=False)
    op, x = calls(torch.float64)[name]
    alike(op, x, "eager", 1e-9)
    alike(pushed(op, x), x, "eager", 1e-9)


def test_a_tangent_from_outside() -> None:
    op, x = calls(torch.float64)["self"]
    torch.testing.assert_close(pushed(torch.compile(op, backend="eager"), x)(x), pushed(op, x)(x))


@pytest.mark.usefixtures("triton_only")
@pytest.mark.parametrize("name", ["self", "gated"])
def test_a_kernel_in_triton(name: str) -> None:
    op, x = calls(torch.float32, DEVICE)[name]
    alike(op, x, "eager", 1e-4)
    alike(pushed(op, x), x, "eager", 1e-4)


@needs_compiler
def test_inductor() -> None:
    op, x = calls(torch.float64)["self"]
    alike(op, x, "inductor", 1e-9)
    alike(pushed(op, x), x, "inductor", 1e-9)


@needs_compiler
def test_inductor_agrees_with_the_tangent_of_a_sum_over_rows() -> None:
    # What add_rows works around: inductor silently miscompiles the tangent of an index_add onto zeros.
    index, x = torch.tensor([0, 0, 2, 2]), torch.randn(4, 3)
    function = pushed(lambda y: add_rows(y, index, 3), x)
    torch.testing.assert_close(torch.compile(function, backend="inductor", fullgraph=True)(x), function(x))


SMALL: dict[str, Any] = {"model_channels": 32, "cond_channels": 16, "num_blocks": 1, "num_heads": 2}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_a_small_flow(kind: str) -> None:
    torch.manual_seed(0)
    t_B, cond = torch.tensor([100.0, 700.0]).double(), Condition(torch.randn(2, 5, 16).double())
    if kind == "dense":
        model, x, layout = (
            SparseStructureFlowModel(4, 4, out_channels=4, qk_rms_norm=True, **SMALL),
            (2, 4, 4, 4, 4),
            (),
        )
    else:
        model, x = SLatFlowModel(8, 4, out_channels=4, io_block_channels=[16], **SMALL), (7, 4)
        layout = (Packed.of_lengths([5, 2], torch.tensor(CELLS[:7])),)
    for parameter in model.double().parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    given = torch.randn(x).double()

    def flow(y: Tensor) -> Tensor:
        return model(y, t_B, cond, *layout)  # type: ignore[no-any-return]

    alike(flow, given, "eager", 1e-9)
    # The jvp lies outside: within torch.compile torch's own layer_norm has no tangent, and raises.
    torch.testing.assert_close(pushed(torch.compile(flow, backend="eager"), given)(given), pushed(flow, given)(given))


def test_importing_the_ops_leaves_the_compiler_alone() -> None:
    import subprocess
    import sys

    script = "import sys, fewstep.ops, fewstep_shapes3d.sparse; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
