"""A call for values alone costs the host little: function calls of a forward pass are counted, launches left out."""

from __future__ import annotations

import cProfile
import pstats
from importlib import import_module
from typing import Any

import pytest
import torch
from fewstep_kernels import support
from fewstep_shapes3d.sparse import windowed_attention
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.models import SparseStructureFlowModel
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense, Packed
from fewstep.errors import FewstepError
from fewstep.ops import (
    Kernel,
    attention,
    call,
    dispatch,
    gated_residual,
    modulated_norm,
    qk_rms_norm,
    register,
    varlen_attention,
)
from fewstep.ops.inputs import plain
from fewstep.ops.table import _TABLE, forced, forcing, forget

BLOCKS = 24


def function_calls(guided: bool = False) -> int:
    """Of one forward pass of a structure flow with all its blocks, small in width, which calls do not depend on.

    Args:
        guided: a sampler's evaluation with guidance instead of the network alone.
    """
    torch.manual_seed(0)
    model = SparseStructureFlowModel(2, 4, 64, 32, 4, BLOCKS, num_heads=2, patch_size=1, qk_rms_norm=True)
    x, t_B, cond = torch.randn(1, 4, 2, 2, 2), torch.tensor([0.5]), Condition(torch.randn(1, 7, 32))
    teacher = Teacher(StructureFlow(model), Guidance(3.0))
    profile = cProfile.Profile()

    def call() -> None:
        if guided:
            teacher(x, t_B, cond, Dense(1))
        else:
            model(x, 1000 * t_B, cond)

    with torch.no_grad():
        call()
        call()
        profile.enable()
        call()
        profile.disable()
    return pstats.Stats(profile).total_calls


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that never imported torch.compile, with which tangents are looked for tensor by tensor."""
    monkeypatch.setattr("fewstep.ops.calls.COMPILER", "absent")
    monkeypatch.setattr("fewstep.ops.inputs.COMPILER", "absent")


def test_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    assert function_calls() <= 5000


def test_guidance_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the host no more than a pass without guidance, and two passes nearly twice as much."""
    without_compiler(monkeypatch)
    alone, two_passes = function_calls(), function_calls(guided=True)
    monkeypatch.setattr("fewstep.core.guidance.one_pass", lambda x: True)
    assert function_calls(guided=True) <= alone + 150
    assert two_passes >= 1.7 * alone


class Stub:
    """Stands for a kernel in Triton; counts its launches."""

    launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *args: Any, **options: Any) -> None:
        self.launches += 1


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Stub]:
    """The choices of a GPU on a CPU: norms, modulation and gates in Triton, whose launches do nothing."""
    pytest.importorskip("triton", reason="counts the launches of Triton kernels")
    without_compiler(monkeypatch)
    monkeypatch.setattr(support, "_off_gpu", lambda x: None)
    found = {name: Stub() for name in ("gate", "heads", "modulation")}
    for name, stub in found.items():
        monkeypatch.setattr(import_module(f"fewstep_kernels.norms.{name}_jit"), "forward_kernel", stub)
    forget()
    return found


def test_on_kernels_in_triton(stubs: dict[str, Stub]) -> None:
    assert function_calls() <= 7000
    # Three passes: two modulated norms, two gates, one norm of queries and keys a block.
    expected = {"gate": 6 * BLOCKS, "heads": 3 * BLOCKS, "modulation": 6 * BLOCKS}
    assert {name: stub.launches for name, stub in stubs.items()} == expected


def test_guidance_in_one_pass_on_kernels_in_triton(stubs: dict[str, Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = function_calls()
    once = {name: stub.launches for name, stub in stubs.items()}
    monkeypatch.setattr("fewstep.core.guidance.one_pass", lambda x: True)
    assert function_calls(guided=True) <= alone + 150
    assert {name: stub.launches for name, stub in stubs.items()} == {name: 2 * n for name, n in once.items()}


@pytest.mark.usefixtures("stubs")
def test_attention_on_equal_lengths_is_torchs_but_for_tangents() -> None:
    x = torch.ones(1, 4, 2, 16)
    assert dispatch("attention", x, x, x).name == "sdpa"
    assert dispatch("attention", x.clone().requires_grad_(), x, x).name == "sdpa"
    with torch.autograd.forward_ad.dual_level():
        assert dispatch("attention", torch.autograd.forward_ad.make_dual(x, x), x, x).name == "triton-dense"


@pytest.mark.parametrize("compiler", [False, True])
def test_plain_is_said_of_values_alone(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.ops.inputs.COMPILER", "torch" if compiler else "absent")
    x, y = torch.ones(3), torch.ones(3)
    seen: dict[str, tuple[bool, bool]] = {}

    def look(name: str, *tensors: Tensor) -> Tensor:
        with torch.no_grad():
            seen[name] = plain(tensors, False), plain(tensors, True)
        return tensors[0].sum()

    assert not plain([x], False)  # a gradient may be wanted
    look("none", x, y)
    torch.func.grad(lambda z: look("grad", z))(x)
    torch.func.grad(lambda z: look("constants in grad", x) + z.sum())(x)
    torch.func.jvp(lambda z: look("jvp", z), (x,), (y,))
    torch.func.jvp(lambda z: look("constants in jvp", x) + z.sum(), (x,), (y,))
    torch.func.vmap(lambda z: look("vmap", x, z))(torch.ones(2, 3))
    torch.func.functionalize(lambda z: look("functionalize", z))(x)
    with torch.autograd.forward_ad.dual_level():
        look("dual", x, torch.autograd.forward_ad.make_dual(x, y))
    wrapped = dict.fromkeys(("grad", "constants in grad", "vmap", "functionalize"), (True, False))
    assert seen == {
        "none": (True, True),
        **wrapped,
        **dict.fromkeys(("jvp", "dual"), (False, False)),
        # Looked at tensor by tensor, constants carry no tangent.
        "constants in jvp": (compiler, False),
    }


@pytest.mark.usefixtures("triton_only")
def test_the_direct_way_gives_the_same_bits() -> None:
    """Also from slices, for which a launch reads in place or copies, and for samples of different lengths."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    heads, x, y, six = draw(2, 5, 3, 2, 16), draw(2, 5, 32), draw(2, 7, 32), draw(2, 6 * 32)
    shift, scale, gate = six.chunk(6, -1)[:3]
    q, k, _ = heads.unbind(-3)
    gamma, own = draw(2, 16), Packed.of_lengths([7, 3])
    voxels = Packed.of_lengths([5], torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 1], [3, 3, 3]]))
    cases = {
        "modulated": lambda: modulated_norm(x, shift, scale),
        "modulated slice": lambda: modulated_norm(y[:, 1:6], shift, scale),
        "gated": lambda: gated_residual(x, gate, y[:, :5]),
        "gated, transposed": lambda: gated_residual(x, gate, y[:, :5].transpose(1, 2).contiguous().transpose(1, 2)),
        "heads": lambda: torch.cat(qk_rms_norm(q, k, gamma, gamma)),
        "heads, other lengths": lambda: torch.cat(qk_rms_norm(q, k[:, :2], gamma, gamma), 1),
        "attention": lambda: attention(q, k, k),
        "packed attention": lambda: varlen_attention(q.flatten(0, 1), k.flatten(0, 1), k.flatten(0, 1), own, own),
        "windows": lambda: windowed_attention(q[0], k[0], k[0], voxels, 2, 1),
    }
    for name, case in cases.items():
        general = case()
        with torch.no_grad():
            assert torch.equal(case(), general), name


@pytest.mark.usefixtures("triton_only")
def test_a_frozen_branch_within_a_gradient() -> None:
    """Constants under no_grad inside torch.func.grad: no input is wrapped, but a kernel's output would be."""
    x, gate, y = torch.randn(1, 5, 32), torch.randn(1, 32), torch.randn(1, 5, 32)

    def loss(z: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = gated_residual(x, gate, y)
        return (z * frozen).sum()

    torch.testing.assert_close(torch.func.grad(loss)(x), x + gate[:, None] * y)


def test_an_answer_is_asked_for_once_for_the_same_types_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_TABLE, "counted", {})
    asked: list[tuple[int, ...]] = []

    def check(x: Tensor, number: int) -> str | None:
        asked.append(tuple(x.shape))
        return None if x.shape[0] > number else "too short"

    def validate(x: Tensor, number: int) -> None:
        if number < 0:
            raise FewstepError("number: got less than 0")

    everything = frozenset({"forward", "backward", "jvp"})
    register(Kernel("plain", "counted", lambda x, n: x, everything, 0, "reference", validate=validate))
    register(Kernel("long", "counted", lambda x, n: -x, everything, 1, check=check))
    for _ in range(3):
        assert call("counted", torch.ones(3), 2)[0] == -1
        assert call("counted", torch.ones(2), 2)[0] == 1
        assert call("counted", torch.ones(3), 3)[0] == 1
        with pytest.raises(FewstepError, match="less than 0"):
            call("counted", torch.ones(3), -1)
    assert asked == [(3,), (2,), (3,)]


def test_forcing_ends_as_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_OPS", "torch")
    with forcing("reference"), forcing("reference"):
        assert forced() == "reference"
    assert forced() == "torch"
