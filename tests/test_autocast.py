"""Mixed precision: ops take their operands in autocast's type, and both flows train in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.vd import MDT
from fewstep_shapes3d.sparse import submanifold_conv, windowed_attention
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.flow import Flow
from fewstep_trellis.models import SLatFlowModel, SparseStructureFlowModel
from fewstep_trellis.slat import StructuredLatentFlow
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import Nets, Step, means
from fewstep.ops import attention, varlen_attention

LOW = [(torch.bfloat16, 0.05), (torch.float16, 0.007)]
SMALL: dict[str, Any] = {"model_channels": 32, "cond_channels": 16, "num_blocks": 2, "num_heads": 2}
CELLS = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1], [3, 3, 3]]
OWN, KEYS = Packed.of_lengths([5, 0, 3], torch.tensor(CELLS)), Packed.of_lengths([2, 3, 0])
OPS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "attention": (attention, [(2, 4, 2, 16)] * 3),
    "self": (lambda q, k, v: varlen_attention(q, k, v, OWN, OWN), [(8, 2, 16)] * 3),
    "cross": (lambda q, k, v: varlen_attention(q, k, v, OWN, KEYS), [(8, 2, 16), (5, 2, 16), (5, 2, 16)]),
    "windows": (lambda q, k, v: windowed_attention(q, k, v, OWN, 2, 1), [(8, 2, 16)] * 3),
    "convolution": (lambda x, w, b: submanifold_conv(x, w, b, OWN), [(8, 6), (4, 3, 3, 3, 6), (4,)]),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPS)
def test_operands_are_taken_in_autocasts_type(name: str, dtype: torch.dtype) -> None:
    op, shapes = OPS[name]
    generator = torch.Generator().manual_seed(0)
    full = [torch.randn(shape, generator=generator) for shape in shapes]
    mixed = [x.to(dtype) if i == 0 else x for i, x in enumerate(full)]  # a layer before it ran in half precision
    with torch.autocast("cpu", dtype):
        found = op(*mixed)
        exact = op(*(x.double() for x in full))
        wanted = op(*(x.to(dtype) for x in full))
    assert found.dtype == dtype
    assert torch.equal(found, wanted)
    assert exact.dtype == torch.float64


def flows() -> list[tuple[Flow, Batch]]:
    cells = torch.cartesian_prod(*[torch.arange(4)] * 3)
    layout = Packed.of_lengths([64, 30], torch.cat([cells, cells[5:35]]))
    slat = SLatFlowModel(8, 4, out_channels=4, io_block_channels=[16], qk_rms_norm=True, **SMALL)
    structure = SparseStructureFlowModel(4, 4, out_channels=4, qk_rms_norm=True, **SMALL)
    cond = Condition(torch.randn(2, 5, 16))
    return [
        (StructuredLatentFlow(slat), Batch(torch.randn(94, 4), layout, cond)),
        (StructureFlow(structure), Batch(torch.randn(2, 4, 4, 4, 4), Dense(2), cond)),
    ]


def gradients(flow: Flow, batch: Batch) -> dict[str, Tensor]:
    """Of a training step, student and teacher unlike each other."""
    student, teacher = flow.student().requires_grad_(True), Teacher(flow.student(), Guidance(3.0))
    for parameter in teacher.parameters():
        parameter.data *= 1.1
    nets = Nets({"teacher": teacher, "student": student}, {})
    terms = means(MDT(MDTConfig(kind="continuous")).loss(batch, nets, Step(0, flow.interpolant, seed=0)))
    torch.stack([t.float() for t in terms.values()]).sum().backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("which", [0, 1], ids=["latents", "structure"])
@pytest.mark.parametrize(("dtype", "within"), LOW)
def test_both_flows_train_in_mixed_precision(which: int, dtype: torch.dtype, within: float) -> None:
    torch.manual_seed(0)
    flow, batch = flows()[which]
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    wanted = gradients(flow, batch)
    with torch.autocast("cpu", dtype):
        found = gradients(flow, batch)
    assert found.keys() == wanted.keys()
    assert all(g.dtype == torch.float32 for g in found.values())
    apart, size = (
        sum(float((x[k] - y[k]).square().sum()) for k in wanted) ** 0.5
        for x, y in ((found, wanted), (wanted, {k: torch.zeros_like(w) for k, w in wanted.items()}))
    )
    assert 0 < apart / size < within
