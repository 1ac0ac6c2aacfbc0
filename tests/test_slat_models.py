"""All models on structured latents: a batch against its samples, order, derivatives, precision, reuse, refusals."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep_trellis.checkpoint import build_model, load_model, save_model
from fewstep_trellis.models import SLatFlowModel
from golden.models import run_state_dict
from slat_cases import AUTOENCODERS, CASES, FLOW, FLOWS, awake, inputs, one_by_one, ragged, run
from torch import Tensor, nn

from fewstep.core.layout import Dense, Packed
from fewstep.errors import FewstepError

CONFIGS = sorted((Path(__file__).parent / "golden" / "data" / "statedict").glob("slat_*.json"))
EACH = pytest.mark.parametrize("case", CASES)
SOME = pytest.mark.parametrize("case", ["flow, published", "flow, patch 4", "encoder", "mesh"])


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_state_dict_is_the_official_one(path: Path) -> None:
    record = json.loads(path.read_text())
    assert all(check.ok for check in run_state_dict(record, path.stem))
    record["tensors"][3][1][0] += 1
    assert not all(check.ok for check in run_state_dict(record, path.stem))


def test_all_eight_official_configurations_are_here() -> None:
    assert len(CONFIGS) == 8


@EACH
def test_a_batch_is_its_samples_one_by_one(case: str) -> None:
    model, layout = awake(*CASES[case]), ragged()
    given = inputs(model, layout)
    together, alone = run(model, given, layout), torch.cat(one_by_one(model, given, layout))
    assert together.abs().max() > 1e-3
    assert (together - alone).abs().max() < 1e-11 * together.abs().max()


@EACH
def test_so_are_its_gradients(case: str) -> None:
    model, layout = awake(*CASES[case]), ragged()
    given = inputs(model, layout)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out.sin().sum(), parameters)

    together = gradients(run(model, given, layout))
    parts = one_by_one(model, given, layout, lambda *of: gradients(run(*of)))  # type: ignore[arg-type,return-value]
    largest = max(float(g.abs().max()) for g in together)
    for name, whole, *shares in zip(names, together, *parts, strict=True):
        assert (whole - sum(shares)).abs().max() < 1e-10 * largest, name


@EACH
def test_the_order_of_voxels_and_samples_does_not_matter(case: str) -> None:
    model, layout = awake(*CASES[case]), ragged()
    given = inputs(model, layout)
    order = torch.tensor([3, 0, 2, 1])
    rows = torch.arange(layout.rows).split(layout.lengths_list)
    shuffled = torch.cat([rows[i].flip(0) for i in order])
    assert layout.coords is not None
    other = Packed.of_lengths([len(rows[i]) for i in order], layout.coords[shuffled])
    moved = {k: v[shuffled] if k == "x" else v[order] for k, v in given.items()}
    expected, found = run(model, given, layout), run(model, moved, other)
    expected = expected.unflatten(0, (layout.rows, -1))[shuffled].flatten(0, 1)
    assert (expected - found).abs().max() < 1e-11 * expected.abs().max()


@EACH
def test_jvp_against_differences(case: str) -> None:
    model, layout = awake(*CASES[case]), ragged()
    given = inputs(model, layout)
    generator = torch.Generator().manual_seed(9)
    moving = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in given.items()}
    h = 2e-6
    # The first pass on this layout is a differentiated one: what it keeps must serve the others.
    value, tangent = torch.func.jvp(lambda given: run(model, given, layout), (given,), (moving,))
    ends = [run(model, {k: v + s * h * moving[k] for k, v in given.items()}, layout) for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * h)
    assert torch.allclose(value, run(model, given, layout), atol=1e-10)
    assert (tangent - expected).abs().max() < 1e-6 * expected.abs().max()


@SOME
def test_gradients_flow_through_jvp(case: str) -> None:
    model, layout = awake(*CASES[case]), ragged()
    given = inputs(model, layout)
    value, tangent = torch.func.jvp(lambda x: run(model, given | {"x": x}, layout), (given["x"],), (given["x"],))
    (value + tangent).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@EACH
def test_fast_kernels_against_the_oracles(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, layout = awake(*CASES[case]), ragged([300, 1, 40])
    given = inputs(model, layout)
    fast = run(model, given, layout)
    monkeypatch.setenv("FEWSTEP_OPS", "reference")
    assert (run(model, given, ragged([300, 1, 40])) - fast).abs().max() < 1e-11 * fast.abs().max()


def _types(model: nn.Module) -> dict[str, str]:
    return {key: str(p.dtype).removeprefix("torch.") for key, p in model.named_parameters()}


HALF = {
    "flow": ("input_blocks.", "blocks.", "out_blocks."),
    "encoder": ("blocks.",),
    "gaussians": ("blocks.",),
    "radiance": ("blocks.",),
    "mesh": ("blocks.", "upsample."),
}
FULL = ("norm", "gamma", "act_layers.0.", "out_layers.1.")


@pytest.mark.parametrize("case", ["flow, both norms", "encoder, full", "gaussians", "radiance", "mesh"])
def test_half_torso_and_back(case: str) -> None:
    name, args = CASES[case]
    half, prefixes = awake(name, args).float(), HALF[case.split(",")[0]]
    layout = ragged()
    given = inputs(half, layout, torch.float32)
    expected = run(half, given, layout)
    half.convert_to_fp16()
    for key, dtype in _types(half).items():
        inside = key.startswith(prefixes) and not any(word in key for word in FULL)
        assert dtype == ("float16" if inside else "float32"), key
    assert _types(half) == _types(build_model(name, args | {"use_fp16": True}))
    seen: list[Tensor] = []
    half.blocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    found = run(half, given, layout)
    assert seen[0].dtype == torch.float16
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 2e-2 * expected.abs().max()
    half.convert_to_fp32()
    assert set(_types(half).values()) == {"float32"}
    assert (run(half, given, layout) - expected).abs().max() < 2e-2 * expected.abs().max()


@SOME
def test_checkpointing_changes_nothing_and_steps_aside_for_jvp(case: str) -> None:
    name, args = CASES[case]
    models, layout = [awake(name, args | {"use_checkpoint": b}) for b in (False, True)], ragged()
    given = inputs(models[0], layout)
    for model in models:
        run(model, given, layout).square().sum().backward()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a.grad, b.grad)
    tangents = [
        torch.func.jvp(lambda x, m=m: run(m, given | {"x": x}, layout), (given["x"],), (given["x"],))[1] for m in models
    ]
    assert torch.equal(*tangents)


@SOME
def test_layout_data_is_made_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, layout = awake(*CASES[case]), ragged()
    given, once, made = inputs(model, layout), Packed.once, Counter[str]()

    def counting(self: Packed, key: Any, build: Any, beside: Packed | None = None) -> Any:
        def counted() -> Any:
            made[key if isinstance(key, str) else key[0]] += 1
            return build()

        return once(self, key, counted, beside)

    monkeypatch.setattr(Packed, "once", counting)
    run(model, given, layout)
    first = made.copy()
    run(model, given, layout).sum().backward()
    torch.func.jvp(lambda x: run(model, given | {"x": x}, layout), (given["x"],), (given["x"],))
    assert made == first
    assert made["position embedding"] == 1
    assert made["condition"] == ("flow" in case)
    assert made["windows"] == (0 if "flow" in case else 2)  # plain and shifted
    assert made["pooling"] == {"flow, published": 1, "flow, patch 4": 2}.get(case, 0)


def test_a_layout_first_seen_by_a_sampler_serves_training() -> None:
    model, layout = awake("SLatFlowModel", FLOW), ragged()
    given = inputs(model, layout)
    with torch.inference_mode():
        sampled = run(model, given, layout)
    trained = run(model, given, layout)
    trained.sum().backward()
    assert torch.allclose(sampled, trained, atol=1e-12)


def test_what_starts_at_zero() -> None:
    model, layout = build_model("SLatFlowModel", FLOW), ragged()
    given = inputs(model, layout, torch.float32)
    assert not run(model, given, layout).any()
    assert isinstance(model, SLatFlowModel)
    for block in [*model.input_blocks, *model.out_blocks]:
        assert not any(p.any() for p in block.conv2.parameters())
        assert all(p.any() for p in block.conv1.parameters())
    assert not any(p.any() for block in model.blocks for p in block.adaLN_modulation.parameters())
    assert 0.015 < model.t_embedder.mlp[0].weight.std() < 0.025
    shared = build_model("SLatFlowModel", FLOW | {"share_mod": True})
    assert not any(p.any() for p in shared.adaLN_modulation.parameters())  # type: ignore[union-attr]


def test_patch_4_halves_twice() -> None:
    model, layout = awake("SLatFlowModel", FLOW | FLOWS["patch 4"]), ragged([60])
    levels = model.poolings(layout)
    assert [len(level.parent) for level in levels] == [layout.rows, levels[0].coarse.rows]
    coarse = levels[1].coarse.coords
    assert coarse is not None
    assert layout.coords is not None
    assert torch.equal(coarse, layout.coords.long().div(4, rounding_mode="floor").unique(dim=0))


def test_without_io_blocks_the_patch_size_says_nothing() -> None:
    models = [
        awake("SLatFlowModel", FLOW | {"io_block_channels": channels, "patch_size": patch})
        for channels, patch in ((None, 1), (None, 2), ([], 1))
    ]
    layout = ragged()
    outputs = [run(model, inputs(model, layout), layout) for model in models]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("case", ["flow, published", "gaussians", "mesh"])
def test_elastic_names_are_kept(case: str, tmp_path: Path) -> None:
    name, args = CASES[case]
    model = build_model(f"Elastic{name}", args)
    assert type(model).__name__ == name
    path = save_model(model, tmp_path / "model")
    assert json.loads(path.with_suffix(".json").read_text()) == {"name": f"Elastic{name}", "args": model.args}
    found, expected = load_model(path).state_dict(), model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pe_mode": "rope"}, "pe_mode: got 'rope'; accepted: 'ape'"),
        ({"patch_size": 3}, "patch_size: got 3; accepted: a power of 2"),
        ({"patch_size": 4}, r"io_block_channels: got \[8\]; accepted: 2 widths"),
        ({"patch_size": 1}, r"io_block_channels: got \[8\]; accepted: 0 widths"),
        ({"num_heads": 3}, "model_channels: got 16; accepted: a multiple of num_heads"),
        ({"num_io_res_blocks": 0}, "num_io_res_blocks: got 0"),
        ({"io_block_chanels": [8]}, "unknown argument of SLatFlowModel.*did you mean 'io_block_channels'"),
    ],
)
def test_flow_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FewstepError, match=message):
        build_model("SLatFlowModel", FLOW | change)


@pytest.mark.parametrize("case", ["flow, published", *AUTOENCODERS])
def test_layouts_and_shapes_that_do_not_fit(case: str) -> None:
    model, layout = awake(*CASES[case]), ragged()
    given = inputs(model, layout)
    with pytest.raises(FewstepError, match="layout: got Dense; accepted: Packed with coords"):
        run(model, given, Dense(4))  # type: ignore[arg-type]
    with pytest.raises(FewstepError, match=r"layout\.coords: got None"):
        run(model, given, Packed(layout.cu_seqlens))
    with pytest.raises(FewstepError, match=r"shape of (x|z|feats): got \(24, 2\); accepted: \[T, C\] = \[24, 3\]"):
        run(model, given | {"x": given["x"][:, :2]}, layout)


def test_conditions_and_times_that_do_not_fit() -> None:
    model, layout = awake("SLatFlowModel", FLOW), ragged()
    given = inputs(model, layout)
    for key, wrong in (("t", given["t"][:3]), ("cond", given["cond"][:3]), ("cond", given["cond"][:, :, :9])):
        with pytest.raises(FewstepError, match=f"shape of {key}: got"):
            run(model, given | {key: wrong}, layout)
