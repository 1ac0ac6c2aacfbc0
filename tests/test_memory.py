"""``fewstep distill --dry-run --memory``: parts in closed form, and what a pass is counted to need."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fewstep.cli import main
from fewstep.config.resolve import resolve_stages
from fewstep.engine.memory import Memory, expected, room
from fewstep.engine.outline import Live, Lowered
from fewstep.errors import FewstepError
from fewstep.ops.inputs import lowered

WIDTH = 64


def toy(*keys: str, method: str = "mdt-vd", device: str | None = None) -> Memory:
    layers = [f"backbone.width={WIDTH}", "train.steps=4", "train.batch_size=32", "train.device=cpu", *keys]
    (resolved,) = resolve_stages(method, "toy", layers=layers).values()
    return expected(resolved, device)


def parameters() -> int:
    """Of the toy's network: 11 inputs, two hidden layers beyond the first, a second time of 5 features."""
    return (11 * WIDTH + WIDTH) + 5 * WIDTH + 2 * (WIDTH * WIDTH + WIDTH) + (2 * WIDTH + 2)


def test_the_parts_of_a_run() -> None:
    found, weights = toy("train.ema=[0.9]"), 4 * parameters()
    assert found.parts["teacher"] == found.parts["network 'student'"] == found.parts["averages (EMA)"] == weights
    assert found.parts["optimiser states"] == 2 * weights
    assert found.passes["gradients"] == weights
    assert found.copies == 4 * weights
    assert found.total == 5 * weights + sum(found.passes.values()) + found.copies


def test_8_bit_states_are_a_quarter_of_the_large_weights() -> None:
    large = 2 * WIDTH * WIDTH
    expected_bytes = 2 * (large + 4 * large / 256) + 8 * (parameters() - large)
    assert toy("train.optimizer=adamw8bit").parts["optimiser states"] == expected_bytes


@pytest.mark.parametrize(("method", "asks"), [("kd", False), ("reflow", False), ("flow-matching", False), ("cm", True)])
def test_a_teacher_that_no_loss_asks_for_waits_in_the_hosts_memory(method: str, asks: bool) -> None:
    on_gpu, on_cpu = (toy(method=method, device=device) for device in ("cuda", "cpu"))
    assert on_gpu.parts["teacher"] == (on_gpu.parts["network 'student'"] if asks else 0)
    assert on_cpu.parts["teacher"] == on_cpu.parts["network 'student'"]
    assert toy("lora.rank=2", method=method, device="cuda").parts["teacher"] == on_cpu.parts["teacher"]


def test_adapters_cost_their_own_size() -> None:
    found, rank = toy("lora.rank=2", "train.ema=[0.9]"), 2
    adapters = 4 * rank * ((11 + WIDTH) + (5 + WIDTH) + 2 * (2 * WIDTH) + (WIDTH + 2))
    assert found.parts["network 'student'"] == found.parts["averages (EMA)"] == found.passes["gradients"] == adapters
    assert found.parts["teacher"] == 4 * parameters()


def test_a_policy_has_a_wider_last_layer() -> None:
    found = toy(method="pi-flow")
    assert found.parts["network 'student'"] - found.parts["teacher"] == 4 * 9 * (2 * WIDTH + 2)


def test_activations_grow_with_the_batch() -> None:
    one, two = (toy(f"train.batch_size={size}").passes["activations"] for size in (512, 1024))
    assert 1.9 < two / one < 2.1


def test_live_bytes_of_a_chain() -> None:
    x = torch.empty(1000, device="meta")
    with Live() as live:
        y = x * 2
        z = y.view(10, 100) * 3  # a view is no new memory
        assert live.now == 8000
        del y
        gc.collect()
        assert live.now == 4000
        z = z * 2
        assert (live.now, live.peak) == (4000, 8000)


def test_recomputed_blocks_keep_their_inputs_alone() -> None:
    blocks = [nn.Sequential(nn.Linear(50, 200), nn.GELU(), nn.Linear(200, 50)).to("meta") for _ in range(4)]
    x, peaks, unit = torch.empty(10, 50, device="meta"), {}, 10 * 50 * 4
    for again in (False, True):
        with Live() as live:
            h = x
            for block in blocks:
                h = checkpoint(block, h, use_reentrant=False) if again else block(h)
            gc.collect()
            peaks[again] = live.now
    assert peaks == {False: 4 * (1 + 4 + 4) * unit, True: 4 * unit}


def test_recomputation_needs_less_under_autocast_too() -> None:
    def activations(*keys: str) -> int:
        layers = ["train.batch_size=16", "train.steps=1", "train.device=cpu", *keys]
        (resolved,) = resolve_stages("flow-matching", "trellis", layers=layers).values()
        return expected(resolved).passes["activations"]

    plain, again = activations(), activations("backbone.recompute=blocks", "train.precision=bf16")
    assert again < 0.4 * plain


def test_products_in_half_precision_and_attention_without_scores() -> None:
    layer, q = nn.Linear(64, 64).to("meta"), torch.empty(1, 2, 4096, 64, device="meta")
    with Live() as live, Lowered(torch.bfloat16):
        assert layer(q).dtype is torch.bfloat16
        assert nn.functional.scaled_dot_product_attention(q, q, q).shape == q.shape
    assert live.peak < 4096 * 4096 * 4


def test_meta_tensors_of_two_types_become_one_as_under_autocast() -> None:
    x, weight = torch.empty(2, 4, device="meta"), torch.empty(6, 4, device="meta", dtype=torch.float16)
    assert [each.dtype for each in lowered(x, weight)] == [torch.float16] * 2
    assert lowered(x, x)[0] is x


def test_official_sizes_without_their_weights(capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["backbone.teacher=ss_flow_txt_dit_B_16l8_fp16", "train.batch_size=1", "train.precision=bf16"]
    (resolved,) = resolve_stages("flow-matching", "trellis", layers=keys).values()
    from fewstep.engine.memory import outline

    network = outline(resolved)
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert sum(p.numel() for p in network.parameters()) > 100e6


SMALL = {"resolution": 4, "in_channels": 8, "out_channels": 8, "model_channels": 32, "cond_channels": 16}
SMALL |= {"num_blocks": 1, "num_heads": 2, "mlp_ratio": 2, "qk_rms_norm": True}
LATENTS = {"patch_size": 2, "num_io_res_blocks": 1, "io_block_channels": [16], "pe_mode": "ape"}
ROTARY = {"pe_mode": "rope", "share_mod": True, "qk_rms_norm_cross": True}


@pytest.mark.parametrize(
    ("backbone", "args"),
    [
        ("trellis-slat", LATENTS),
        ("trellis2-shape", ROTARY),
        ("trellis2-texture", ROTARY | {"in_channels": 13}),
    ],
)
def test_made_up_samples_on_voxels(backbone: str, args: dict[str, Any], tmp_path: Path) -> None:
    """Of a checkpoint's json alone, and without data: a grid of 4^3 cells that is full."""
    (tmp_path / "flow.json").write_text(json.dumps({"name": "SLatFlowModel", "args": SMALL | args}))
    layers = [f"backbone.teacher={tmp_path / 'flow'}", "train.steps=1", "train.batch_size=2", "train.device=cpu"]
    dataset = "trellis-slat" if backbone == "trellis-slat" else None
    (resolved,) = resolve_stages("mdt-vd", backbone, layers=layers, dataset=dataset).values()
    found = expected(resolved)
    assert found.notes == ["made-up samples, 64 rows each"]
    assert found.passes["activations"] > 2 * 64 * (3 * 2 + 2) * 32 * 4  # q, k, v and the hidden layer, twice


def test_the_command_says_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "-m", "cm", "-b", "toy", "--dry-run", "train.batch_size=8"]
    assert main([*words, "--memory", "1GB"]) == 0
    found = capsys.readouterr().out
    assert "fits into 1.0 GB" in found
    assert "copy for a checkpoint" not in found  # of a GPU's tensors the host has it
    assert main([*words, "train.device=cpu", "--memory", "auto"]) == 0
    assert "copy for a checkpoint" in capsys.readouterr().out
    assert main([*words, "--memory", "0.5GB"]) == 0  # on a GPU its context alone takes more
    assert "does not fit into 0.5 GB" in capsys.readouterr().out
    assert main([*words, "--memory", "much"]) == 2
    assert "--memory: got 'much'" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "size"), [("24GB", 24e9), ("8 GiB", 8 * 2**30), ("12", 12e9)])
def test_sizes(given: str, size: float) -> None:
    assert room(given, torch.device("cpu")) == size
    with pytest.raises(FewstepError, match="--memory"):
        room("", torch.device("cpu"))
