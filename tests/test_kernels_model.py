"""A whole structured-latent flow on Triton kernels: the same velocity, gradients and tangent as in plain torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fewstep_trellis.models import SLatFlowModel, SparseStructureFlowModel
from kernel_helpers import DEVICE, relative_rms
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep.ops import table

pytestmark = pytest.mark.usefixtures("triton_only")
SMALL = {"model_channels": 32, "cond_channels": 16, "num_blocks": 1, "num_heads": 2, "qk_rms_norm": True}
Step = dict[str, Tensor]


def noisy(model: nn.Module) -> nn.Module:
    """Weights in which nothing is zero: as published, output layers start at 0 and would hide everything."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1)
    return model.to(DEVICE)


def voxels() -> Packed:
    cells = torch.cartesian_prod(*[torch.arange(6)] * 3)
    picked = [cells[torch.randperm(216, generator=torch.Generator().manual_seed(n))[:n]] for n in (45, 20)]
    return Packed.of_lengths([45, 20], torch.cat(picked).to(DEVICE))


def packed() -> tuple[nn.Module, list[Tensor], list[Packed]]:
    model = noisy(SLatFlowModel(8, 4, out_channels=4, patch_size=2, io_block_channels=[16], **SMALL))
    return model, [torch.randn(65, 4), torch.tensor([300.0, 700.0]), torch.randn(2, 5, 16)], [voxels()]


def dense() -> tuple[nn.Module, list[Tensor], list[Packed]]:
    model = noisy(SparseStructureFlowModel(4, 4, out_channels=4, patch_size=2, **SMALL))
    return model, [torch.randn(2, 4, 4, 4, 4), torch.tensor([300.0, 700.0]), torch.randn(2, 5, 16)], []


def derivatives(model: nn.Module, x: list[Tensor], layouts: list[Packed]) -> Step:
    """One training step's worth: value with graph and tangent along (direction, 1), and all gradients."""
    layouts = [Packed(layout.cu_seqlens, layout.coords) for layout in layouts]
    direction = torch.full_like(x[0], 0.5)
    value, tangent = torch.func.jvp(
        lambda a, t: model(a, t, x[2], *layouts), (x[0], x[1]), (direction, torch.ones_like(x[1]))
    )
    plain = model(x[0], x[1], x[2], *layouts)
    loss = (plain - value.detach() + tangent.detach()).square().sum() + value.square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return {"value": value.detach(), "tangent": tangent.detach(), **dict(zip(names, gradients, strict=True))}


def watched(kernel: table.Kernel, function: Any, chosen: dict[str, set[str]]) -> Any:
    """A kernel's function, which notes the backend of the op in ``chosen``."""

    def run(*args: Any) -> Any:
        chosen.setdefault(kernel.op, set()).add(kernel.backend)
        return function(*args)

    return function and run


@pytest.mark.parametrize("build", [pytest.param(packed, marks=pytest.mark.slow), dense])
def test_the_whole_model_agrees_with_plain_torch(build: object, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, inputs, layouts = build()  # type: ignore[operator]
    inputs = [x.to(DEVICE) for x in inputs]
    chosen: dict[str, set[str]] = {}
    for kernel in [k for known in table.table().values() for k in known.values()]:
        seen = replace(kernel, run=watched(kernel, kernel.run, chosen), direct=watched(kernel, kernel.direct, chosen))
        monkeypatch.setitem(table.table()[kernel.op], kernel.name, seen)
    table.forget()
    got = derivatives(model, inputs, layouts)
    with_triton = {op for op in chosen if any(k.backend == "triton" for k in table.kernels(op))}
    assert {op: chosen[op] for op in with_triton} == {op: {"triton"} for op in with_triton}
    assert with_triton >= ({"varlen_attention", "submanifold_conv"} if layouts else {"attention"})

    monkeypatch.setenv("FEWSTEP_OPS", "reference")
    plain = derivatives(model, inputs, layouts)
    wanted = derivatives(model.double(), [x.double() for x in inputs], layouts)
    names = [name for name in wanted if wanted[name].norm() > 1e-6]
    assert len(names) > 20
    # The model itself loses digits in float32 (its times go up to 1000): as many as plain torch may be lost.
    worse = {name: (relative_rms(x[name], wanted[name]) for x in (got, plain)) for name in names}
    assert [name for name, (ours, theirs) in worse.items() if ours > 3 * theirs + 2e-6] == []
