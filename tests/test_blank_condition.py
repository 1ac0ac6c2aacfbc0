"""A condition that is known to be all zeros skips cross attention, with the same output and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fewstep_trellis.models import SLatFlowModel, SparseStructureFlowModel
from torch import Tensor, nn

from fewstep.core.batch import Condition
from fewstep.core.layout import Packed

SMALL: dict[str, Any] = {"model_channels": 32, "cond_channels": 16, "num_blocks": 2, "num_heads": 2}
Run = Callable[[Condition], Tensor]


def dense(norm: bool) -> tuple[nn.Module, Run]:
    model = SparseStructureFlowModel(4, 4, out_channels=4, qk_rms_norm_cross=norm, **SMALL).double()
    x, t_B = torch.randn(2, 4, 4, 4, 4).double(), torch.tensor([300.0, 900.0]).double()
    return model, lambda cond: model(x, t_B, cond)  # type: ignore[no-any-return]


def packed(norm: bool) -> tuple[nn.Module, Run]:
    model = SLatFlowModel(8, 4, out_channels=4, io_block_channels=[16], qk_rms_norm_cross=norm, **SMALL).double()
    cells = torch.cartesian_prod(*[torch.arange(4)] * 3)
    layout = Packed.of_lengths([64, 30], torch.cat([cells, cells[5:35]]))
    x, t_B = torch.randn(94, 4).double(), torch.tensor([300.0, 900.0]).double()
    return model, lambda cond: model(x, t_B, cond, layout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("build", [dense, packed])
def test_it_skips_cross_attention(build: Callable[[bool], tuple[nn.Module, Run]], norm: bool) -> None:
    torch.manual_seed(0)
    model, run = build(norm)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    asked: list[str] = []
    for name, module in model.named_modules():
        if name.endswith("cross_attn.to_q"):
            module.register_forward_hook(lambda *_: asked.append("to_q"))
    tokens = torch.randn(2, 5, 16).double()
    found = []
    for cond in (Condition(tokens).negative(), Condition(torch.zeros_like(tokens))):
        asked.clear()
        out = run(cond)
        gradients = torch.autograd.grad(out.square().sum(), list(model.parameters()), allow_unused=True)
        found.append([out, *(torch.zeros(1).double() if g is None else g for g in gradients)])
        assert len(asked) == (0 if cond.blank else 2)
    assert found[0][0].abs().max() > 1e-3
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got.expand_as(wanted), wanted, rtol=1e-9, atol=1e-9)


def test_a_given_negative_is_not_blank() -> None:
    tokens = torch.ones(2, 5, 16)
    assert Condition(tokens).negative().blank
    assert not Condition(tokens, 0 * tokens).negative().blank
    assert not Condition(tokens).dropped(torch.tensor([True, False])).blank
    assert Condition(tokens).negative().select(torch.tensor([1])).blank


def test_a_dropped_condition_is_the_given_negative() -> None:
    found = Condition(torch.ones(2, 3), torch.full((2, 3), -2.0)).dropped(torch.tensor([True, False])).tokens
    assert found is not None
    assert found.tolist() == [[-2.0] * 3, [1.0] * 3]
