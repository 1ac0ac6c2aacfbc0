"""Norm, modulation and gate kernels in Triton against their oracles in float64: values, gradients, tangents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from kernel_helpers import DEVICE, TYPES, close
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep.ops import (
    dispatch,
    explain,
    gated_residual,
    head_rms_norm,
    in_transform,
    modulated_norm,
    qk_rms_norm,
)
from fewstep.ops.modulation import reference_gated_residual, reference_modulated_norm
from fewstep.ops.norms import reference_qk_rms_norm

pytestmark = pytest.mark.usefixtures("triton_only")
Tensors = tuple[Tensor, ...]


@dataclass
class Case:
    """An op on given tensors, its oracle, and what they take besides tensors."""

    op: Callable[..., Any]
    oracle: Callable[..., Any]
    tensors: Tensors
    rest: tuple[Any, ...] = ()

    def ours(self, *tensors: Tensor) -> Tensors:
        out = self.op(*tensors, *self.rest)
        return out if isinstance(out, tuple) else (out,)

    def theirs(self, *tensors: Tensor) -> Tensors:
        wide = [tuple(t.double() for t in a) if isinstance(a, tuple) else a for a in self.rest]
        out = self.oracle(*tensors, *wide)
        return out if isinstance(out, tuple) else (out,)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def self_heads(dtype: torch.dtype, width: int, rotary: bool = False, packed: bool = False) -> Case:
    """q and k as slices of one projection; gains are float32 beside half-precision activations, as in TRELLIS."""
    q, k, _ = draw(*((33,) if packed else (2, 17)), 3, 2, width, dtype=dtype).unbind(-3)
    turn = torch.rand(q.shape[-3], width // 2, device=DEVICE) * 6
    rest = ((turn.cos().to(dtype), turn.sin().to(dtype)),) if rotary else (None,)
    return Case(qk_rms_norm, reference_qk_rms_norm, (q, k, draw(2, width), draw(2, width)), rest)


def cross_heads(dtype: torch.dtype) -> Case:
    """Queries and keys of different lengths; heads or samples with gaps between them in memory."""
    q, k = draw(3, 5, 9, 24, dtype=dtype)[:, :, 1:].transpose(1, 2), draw(3, 20, 5, 24, dtype=dtype)[:, 2:9]
    return Case(qk_rms_norm, reference_qk_rms_norm, (q, k, draw(5, 24), draw(5, 24)), (None,))


def one_head_norm(dtype: torch.dtype) -> Case:
    x, gamma = draw(7, 3, 40, dtype=dtype), draw(3, 40)
    return Case(head_rms_norm, lambda x, g: reference_qk_rms_norm(x, x[:0], g, g)[0], (x, gamma))


LENGTHS = ([5, 0, 1, 40], [19])


def rows_of(width: int, dtype: torch.dtype, lengths: list[int] | None) -> tuple[Tensor, Tensor, Packed | None]:
    """x, the projection of each sample, and the layout; dense without lengths."""
    layout = None if lengths is None else Packed.of_lengths(lengths, device=DEVICE)
    x = draw(3, 18, width, dtype=dtype) if layout is None else draw(layout.rows, width, dtype=dtype)
    return x, draw(3 if layout is None else layout.batch_size, 6 * width, dtype=dtype), layout


def modulation(width: int, dtype: torch.dtype, lengths: list[int] | None = None) -> Case:
    x, six, layout = rows_of(width, dtype, lengths)
    shift, scale = six.chunk(6, -1)[1:3]
    return Case(modulated_norm, reference_modulated_norm, (x, shift, scale), (layout, 1e-6))


def gate(width: int, dtype: torch.dtype, lengths: list[int] | None = None) -> Case:
    x, six, layout = rows_of(width, dtype, lengths)
    y = draw(width, x[..., 0].numel(), dtype=dtype).T.view(x.shape)  # channels far apart
    return Case(gated_residual, reference_gated_residual, (x, six.chunk(6, -1)[2], y), (layout,))


CASES: dict[str, Callable[[torch.dtype], Case]] = {
    "heads of 24": lambda d: self_heads(d, 24),
    "heads of 32, rotary": lambda d: self_heads(d, 32, rotary=True),
    "heads of 128, rotary": lambda d: self_heads(d, 128, rotary=True),
    "heads of 64, packed": lambda d: self_heads(d, 64, packed=True),
    "heads of 96, packed, rotary": lambda d: self_heads(d, 96, rotary=True, packed=True),
    "heads of 128": lambda d: self_heads(d, 128),
    "queries and keys of two lengths": cross_heads,
    "one norm": one_head_norm,
    "modulation of 24": lambda d: modulation(24, d),
    "modulation of 1000": lambda d: modulation(1000, d),
    "modulation of 96, packed": lambda d: modulation(96, d, LENGTHS[0]),
    "modulation of 128, one sample": lambda d: modulation(128, d, LENGTHS[1]),
    "gate of 24": lambda d: gate(24, d),
    "gate of 1032": lambda d: gate(1032, d),
    "gate of 96, packed": lambda d: gate(96, d, LENGTHS[0]),
}


def graph(tensors: Tensors, dtype: torch.dtype | None = None) -> Tensors:
    """The same numbers, to be differentiated; strides stay."""
    return tuple((x if dtype is None else x.to(dtype)).detach().requires_grad_() for x in tensors)


def directions(tensors: Tensors) -> Tensors:
    return tuple(torch.randn_like(x) for x in tensors)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_value_gradients_and_tangent(name: str, dtype: torch.dtype) -> None:
    """Value and tangent together by ``torch.func.jvp``, and through the value the gradients of all inputs."""
    torch.manual_seed(0)
    case = CASES[name](dtype)
    pushed = directions(case.tensors)
    found = []
    for run, wide in ((case.ours, None), (case.theirs, torch.float64)):
        inputs = graph(case.tensors, wide)
        values, tangents = torch.func.jvp(run, inputs, tuple(t.to(wide or t.dtype) for t in pushed))
        torch.manual_seed(1)
        grads = [torch.randn(v.shape).to(DEVICE, dtype).to(v.dtype) for v in values]
        found.append((*values, *tangents, *torch.autograd.grad(values, inputs, grads)))
    outputs = len(values)
    types = [dtype] * (2 * outputs) + [x.dtype for x in case.tensors]
    for i, (got, wanted) in enumerate(zip(*found, strict=True)):
        assert got.dtype == types[i]
        close(got.to(dtype), wanted, dtype, f"output {i}")


@pytest.mark.parametrize("name", ["heads of 32, rotary", "modulation of 96, packed", "gate of 96, packed"])
def test_gradients_without_tangents_are_the_same_twice(name: str) -> None:
    """Sums over rows have a fixed order; gradients arrive expanded, as from a sum."""
    torch.manual_seed(0)
    case = CASES[name](torch.float32)
    inputs = graph(case.tensors)
    once, again = (torch.autograd.grad(sum(v.sum() for v in case.ours(*inputs)), inputs) for _ in range(2))
    wide = graph(case.tensors, torch.float64)
    wanted = torch.autograd.grad(sum(v.sum() for v in case.theirs(*wide)), wide)
    for a, b, w in zip(once, again, wanted, strict=True):
        assert torch.equal(a, b)
        close(a, w, torch.float32)


@pytest.mark.parametrize("name", ["heads of 24", "modulation of 24", "gate of 24"])
def test_tangents_of_one_input_at_a_time(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name](torch.float32)
    for i, (x, t) in enumerate(zip(case.tensors, directions(case.tensors), strict=True)):

        def along(run: Callable[..., Tensors], wide: torch.dtype, i: int = i, x: Tensor = x, t: Tensor = t) -> Tensors:
            others = [y.to(wide) for y in case.tensors]
            pushed: Any = torch.func.jvp(
                lambda one: run(*others[:i], one, *others[i + 1 :]), (x.to(wide),), (t.to(wide),)
            )
            return pushed[1]

        for got, wanted in zip(along(case.ours, torch.float32), along(case.theirs, torch.float64), strict=True):
            close(got, wanted, torch.float32, f"input {i}")


@pytest.mark.parametrize("name", ["heads of 24", "modulation of 96, packed", "gate of 96, packed"])
def test_higher_derivatives(name: str) -> None:
    """Gradients of gradients, of tangents, tangents of gradients, and dual numbers."""
    torch.manual_seed(0)
    case = CASES[name](torch.float32)
    found = []
    pushed = directions(case.tensors)
    for run, wide in ((case.ours, torch.float32), (case.theirs, torch.float64)):
        inputs, tangents = graph(case.tensors, wide), tuple(t.to(wide) for t in pushed)
        loss = lambda *x, run=run: sum(v.square().sum() for v in run(*x))  # noqa: E731
        every = tuple(range(len(inputs)))
        once = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
        twice = torch.autograd.grad(sum(g.square().sum() for g in once), inputs)
        of_tangent = torch.autograd.grad(
            sum(t.square().sum() for t in torch.func.jvp(run, inputs, tangents)[1]), inputs, materialize_grads=True
        )
        of_gradient = torch.func.jvp(torch.func.grad(loss, every), inputs, tangents)[1]
        with torch.autograd.forward_ad.dual_level():
            duals = [torch.autograd.forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
            plain = [torch.autograd.forward_ad.unpack_dual(v).tangent for v in run(*duals)]
        found.append((*once, *twice, *of_tangent, *of_gradient, *plain))
    for i, (got, wanted) in enumerate(zip(*found, strict=True)):
        close(got, wanted, torch.float32, f"derivative {i}")


class Counter:
    """Counts the launches of a kernel and keeps the arguments of the last one."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launches = kernel, 0
        self.args: tuple[Any, ...] = ()

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            self.launches, self.args = self.launches + 1, args
            self.kernel[grid](*args, **kwargs)

        return run


def test_one_launch_for_queries_and_keys_and_their_tangents_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep_kernels.norms import heads_jit

    counter = Counter(heads_jit.forward_kernel)
    monkeypatch.setattr(heads_jit, "forward_kernel", counter)
    case = self_heads(torch.float32, 32)
    case.ours(*case.tensors)
    assert counter.launches == 1
    assert [x.data_ptr() for x in counter.args[:2]] == [x.data_ptr() for x in case.tensors[:2]]
    torch.func.jvp(case.ours, case.tensors, case.tensors)
    assert counter.launches == 2


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen weights: no sums over rows. Frozen inputs: no gradient of x."""
    from fewstep_kernels.norms import modulation_jit

    counter = Counter(modulation_jit.backward_kernel)
    monkeypatch.setattr(modulation_jit, "backward_kernel", counter)
    x, shift, scale = modulation(24, torch.float32).tensors
    modulated_norm(x.clone().requires_grad_(), shift, scale).sum().backward()
    assert counter.args[4] is not None
    assert counter.args[5] is None
    modulated_norm(x, shift.clone().requires_grad_(), scale).sum().backward()
    assert counter.args[4] is None
    assert counter.args[5] is not None


def test_a_float32_stream_with_half_precision_branches() -> None:
    """As under autocast: types promote, and each gradient has its input's type."""
    torch.manual_seed(0)
    for case in (modulation(24, torch.float32), gate(24, torch.float32)):
        mixed = tuple(v if i == 0 else v.bfloat16() for i, v in enumerate(case.tensors))
        inputs, wide = graph(mixed), graph(mixed, torch.float64)
        (got,), (wanted,) = case.ours(*inputs), case.theirs(*wide)
        close(got, wanted, torch.float32)
        pairs = zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(wanted.sum(), wide), strict=True)
        for x, (a, b) in zip(inputs, pairs, strict=True):
            close(a, b, x.dtype)


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8), (0, 2, 8)])
def test_no_tokens(shape: tuple[int, ...]) -> None:
    q, k = torch.zeros(shape, device=DEVICE, requires_grad=True), draw(2, 3, 2, 8)
    gamma = torch.ones(2, 8, device=DEVICE, requires_grad=True)
    empty, full = qk_rms_norm(q, k, gamma, gamma)
    full.sum().backward()
    assert empty.shape == q.shape
    close(gamma.grad, reference_qk_rms_norm(k, k, gamma, gamma)[0].detach().sum((0, 1)), torch.float32)


def test_no_rows() -> None:
    layout = Packed.of_lengths([0, 0], device=DEVICE)
    x, v = torch.zeros(0, 8, device=DEVICE), torch.ones(2, 8, device=DEVICE, requires_grad=True)
    (modulated_norm(x, v, v, layout) + gated_residual(x, v, x, layout)).sum().backward()
    assert torch.equal(v.grad, torch.zeros_like(v))


def test_a_zero_vector_stays_zero() -> None:
    x = draw(3, 2, 24).index_fill(0, torch.tensor([1], device=DEVICE), 0.0)
    gamma = draw(2, 24)
    got = head_rms_norm(x, gamma)
    assert torch.equal(got[1], torch.zeros_like(got[1]))
    assert got[0].abs().min() > 0


def test_a_layout_made_within_a_transform() -> None:
    """As a model's coarser layout is; it is kept, and used again by a later pass outside."""
    torch.manual_seed(0)
    x, v = draw(20, 24), draw(2, 24)
    made = []

    def run(x: Tensor) -> Tensor:
        made.append(Packed(torch.tensor([0, 13, 20], device=DEVICE) + 0))
        return gated_residual(x, v, modulated_norm(x, v, v, made[0]), made[0])

    value, tangent = torch.func.jvp(run, (x,), (x,))
    assert in_transform(made[0].index)
    inputs = graph((x, v))
    later = gated_residual(inputs[0], inputs[1], modulated_norm(inputs[0], inputs[1], inputs[1], made[0]), made[0])
    later.sum().backward()
    layout = Packed.of_lengths([13, 7], device=DEVICE)

    def oracle(x: Tensor, v: Tensor) -> Tensor:
        return reference_gated_residual(x, v, reference_modulated_norm(x, v, v, layout, 1e-6), layout)

    wide = graph((x, v), torch.float64)
    wanted, pushed = torch.func.jvp(lambda x: oracle(x, wide[1]), (wide[0],), (x.double(),))
    for got, right in ((value, wanted), (tangent, pushed), (later, wanted)):
        close(got, right, torch.float32)
    for got, right in zip(inputs, torch.autograd.grad(oracle(*wide).sum(), wide), strict=True):
        close(got.grad, right, torch.float32)


def test_what_the_oracle_serves() -> None:
    q, _, gamma, _ = self_heads(torch.float32, 24).tensors
    x, shift, scale = modulation(24, torch.float32).tensors
    assert dispatch("modulated_norm", x, shift, scale, None, 1e-6).backend == "triton"
    reasons = {
        "float64": explain("modulated_norm", x.double(), shift.double(), scale.double(), None, 1e-6),
        "types": explain("gated_residual", x, shift.double(), x, None),
        "wide": explain("modulated_norm", draw(1, 1, 9000), draw(1, 9000), draw(1, 9000), None, 1e-6),
        "tables": explain("qk_rms_norm", q, q, gamma, gamma, (draw(17, 12).requires_grad_(), draw(17, 12))),
    }
    words = {"float64": "float64", "types": "float64", "wide": "channels", "tables": "rotary tables"}
    for name, found in reasons.items():
        assert words[name] in str(next(iter(found.values()))), found


@pytest.mark.filterwarnings("ignore:FEWSTEP_OPS=triton")
def test_vmap_is_served_by_the_oracle() -> None:
    torch.manual_seed(0)
    x, shift, scale = draw(2, 3, 5, 24), draw(2, 3, 24), draw(2, 3, 24)
    got = torch.func.vmap(modulated_norm)(x, shift, scale)
    for i in range(2):
        close(got[i], reference_modulated_norm(x[i], shift[i], scale[i], None, 1e-6), torch.float32)


def test_misuse_is_refused_before_a_launch() -> None:
    x, shift, scale = modulation(24, torch.float32).tensors
    with pytest.raises(FewstepError, match="shift"):
        modulated_norm(x, shift[:, :5], scale)
    with pytest.raises(FewstepError, match="type of x"):
        modulated_norm(x.int(), shift, scale)
    with pytest.raises(FewstepError, match="meta"):
        gated_residual(x, shift.to("meta"), x)
    with pytest.raises(FewstepError, match="k_gamma"):
        qk_rms_norm(draw(1, 2, 2, 8), draw(1, 2, 2, 8), draw(2, 8), draw(3, 8))
