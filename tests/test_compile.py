"""Ops under torch.compile: whole graphs, the same values and gradients, and tangents that are right or refused."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from compile_helpers import Graphs, Op, calls, gradient, layouts, pushed
from fewstep_trellis.models import SparseStructureFlowModel
from kernel_helpers import DEVICE
from torch import Tensor
from torch.autograd import forward_ad

from fewstep.core.layout import Packed
from fewstep.core.segments import add_rows
from fewstep.errors import FewstepError
from fewstep.ops import varlen_attention, wire
from fewstep.ops.launches import Launches
from fewstep.ops.opaque import opaque

OPS = list(calls(torch.float64))
TRITON = [name for name in OPS if name != "group norm"]  # which has no kernel in Triton
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def whole(function: Op, backend: object = "aot_eager") -> Op:
    """Compiled without a single break."""
    return torch.compile(function, backend=backend, fullgraph=True)  # type: ignore[call-overload, no-any-return]


def alike(function: Op, x: Tensor, backend: str, within: float) -> None:
    """Value and gradient as without torch.compile."""
    compiled = whole(function, backend)
    torch.testing.assert_close(compiled(x), function(x), rtol=within, atol=within)
    torch.testing.assert_close(gradient(compiled, x), gradient(function, x), rtol=within, atol=within)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", OPS)
def test_values_gradients_and_gradients_of_tangents(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_OPS", raising=False)
    op, x = calls(torch.float64)[name]
    alike(op, x, backend, 1e-9)
    alike(pushed(op, x), x, backend, 1e-9)


@pytest.mark.parametrize("name", OPS)
def test_a_tangent_inside_is_the_difference_quotient(name: str) -> None:
    op, x = calls(torch.float64)[name]
    move, step = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape), 1e-6
    wanted = (op(x + step * move) - op(x - step * move)) / (2 * step)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(whole(pushed(op, x))(x), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("triton_only")
@pytest.mark.parametrize("name", TRITON)
def test_kernels_in_triton(name: str) -> None:
    op, x = calls(torch.float32, DEVICE)[name]
    graphs = Graphs()
    whole(op, graphs)(x)
    assert len(graphs.nodes()) == 1
    assert graphs.nodes()[0].endswith("_triton.default")
    alike(op, x, "aot_eager", 1e-5)
    alike(pushed(op, x), x, "aot_eager", 1e-4)


@needs_compiler
def test_inductor_as_users_have_it() -> None:
    op, x = calls(torch.float64)["self"]
    alike(op, x, "inductor", 1e-9)
    torch.testing.assert_close(whole(pushed(op, x), "inductor")(x), pushed(op, x)(x))


@needs_compiler
def test_inductor_agrees_with_the_tangent_of_a_sum_over_rows() -> None:
    # What this package works around: an index_add onto zeros, whose tangent inductor gets wrong without a word.
    index, x = torch.tensor([0, 0, 2, 2]), torch.randn(4, 3)
    function = pushed(lambda y: add_rows(y, index, 3), x)
    torch.testing.assert_close(whole(function, "inductor")(x), function(x))


def test_a_whole_model_is_one_graph() -> None:
    small: dict[str, Any] = {"model_channels": 32, "cond_channels": 16, "num_blocks": 2, "num_heads": 2}
    model = SparseStructureFlowModel(4, 4, out_channels=4, qk_rms_norm=True, **small).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    t_B, tokens, x = torch.tensor([100.0, 700.0]).double(), torch.randn(2, 5, 16).double(), torch.randn(2, 4, 4, 4, 4)

    def predict(y: Tensor) -> Tensor:
        return model(y, t_B, tokens)  # type: ignore[no-any-return]

    # Not its tangent: torch's own layer norm has none inside torch.compile, and says so.
    alike(predict, x.double(), "aot_eager", 1e-9)


def test_one_graph_serves_layouts_of_other_lengths() -> None:
    graphs = Graphs()

    def attend(x: Tensor, layout: Packed) -> Tensor:
        return varlen_attention(x, x, x, layout, layout)

    compiled = torch.compile(attend, backend=graphs, fullgraph=True)
    for lengths in ([3, 4], [5, 6], [7, 2], [17, 1], [9, 9], [2, 11]):
        layout, x = Packed.of_lengths(lengths), torch.randn(sum(lengths), 1, 8)
        torch.testing.assert_close(compiled(x, layout), attend(x, layout))
    assert len(graphs.seen) <= 2  # exact sizes, then any


def test_a_layout_is_found_again_with_what_it_keeps() -> None:
    own, _ = layouts()
    assert wire.read("c", [own.cu_seqlens, own.coords], [], [], True).args == [own]  # type: ignore[list-item]
    bounds = own.cu_seqlens
    del own
    gc.collect()
    made = wire.read("p", [bounds], [], [], True).args[0]
    assert made.lengths_list == [5, 0, 3]
    assert wire.read("p", [bounds], [], [], True).args[0] is made
    with pytest.raises(FewstepError, match="type dict"):
        wire.flat([{}])


@pytest.mark.parametrize("name", ["self", "convolution"])
def test_a_tangent_from_outside_is_right_or_refused(name: str) -> None:
    op, x = calls(torch.float64)[name]
    wanted, move = pushed(op, x)(x), torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape)
    refusal: FewstepError | None = None
    with forward_ad.dual_level():
        try:
            found = forward_ad.unpack_dual(whole(op)(forward_ad.make_dual(x, move))).tangent
        except FewstepError as error:
            refusal = error
        else:
            torch.testing.assert_close(found, wanted)
    assert refusal is None or "carries a tangent" in str(refusal)
    torch.compiler.reset()
    # torch itself leaves such a call uncompiled.
    found = torch.func.jvp(torch.compile(op, backend="aot_eager"), (x,), (move,))[1]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["self", "cross", "windows", "convolution"])
def test_reverse_mode_inside(name: str) -> None:
    op, x = calls(torch.float64)[name]

    def inner(y: Tensor) -> Tensor:
        return torch.func.grad(lambda z: op(z).square().sum())(y)

    torch.testing.assert_close(whole(inner)(x), inner(x))


def _times(x: Tensor, y: Tensor) -> Tensor:
    return x * y.sin()


times = opaque("test_times", Launches(_times, lambda x, y: (x,)))
rigid = opaque("test_rigid", Launches(_times, lambda x, y: (x,), jvp=False))


def test_a_node_obeys_the_rules_of_torch_ops() -> None:
    inputs = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for name, tensors, spec in (("", inputs, "tt"), ("_tangent", [*inputs, inputs[0]], "tt|10")):
        found = torch.library.opcheck(getattr(torch.ops.fewstep, f"test_times{name}").default, (spec, tensors, [], []))
        assert set(found.values()) == {"SUCCESS"}


def test_a_node_without_a_tangent_says_so() -> None:
    x = torch.randn(3)
    with pytest.raises(FewstepError, match="test_rigid: no forward-mode derivative"), forward_ad.dual_level():
        torch.ops.fewstep.test_rigid("tt", [forward_ad.make_dual(x, x), x], [], [])


def test_derivatives_of_a_nodes_derivatives_are_refused() -> None:
    x, y = (torch.randn(3, requires_grad=True) for _ in range(2))

    def value(a: Tensor) -> Tensor:
        return torch.ops.fewstep.test_times("tt", [a, y], [], [])[0].square().sum()

    first = torch.autograd.grad(value(x), x, create_graph=True)[0]
    torch.testing.assert_close(first, 2 * x * y.sin() ** 2)
    with pytest.raises(FewstepError, match="no derivatives of its derivatives"):
        first.sum().backward()
    with pytest.raises(FewstepError, match="no derivatives of its derivatives"):
        torch.func.jvp(torch.func.grad(value), (x.detach(),), (x.detach(),))


def test_outside_of_compile_the_function_itself_runs() -> None:
    x, y = torch.randn(3), torch.randn(3)
    assert torch.equal(times(x, y), _times(x, y))
    assert torch.equal(whole(lambda a: times(a, y))(x), _times(x, y))
