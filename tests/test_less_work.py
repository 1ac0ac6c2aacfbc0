"""Work that a step saves: each switch gives the same losses, gradients and samples, and does save what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.vd import MDT
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.flow import Flow
from fewstep_trellis.models import SLatFlowModel, SparseStructureFlowModel
from fewstep_trellis.slat import StructuredLatentFlow
from torch import Tensor, nn

from fewstep.core.backbone import Guidance
from fewstep.core.batch import Batch, Condition, joined
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Nets, Step, means
from fewstep.core.samplers import euler
from fewstep.errors import FewstepError
from fewstep.ops.economy import ENV, SWITCHES, economy, on

ROUNDING = 1e-7
SMALL: dict[str, Any] = {"model_channels": 32, "cond_channels": 16, "num_blocks": 2, "num_heads": 2}


def relative(got: Tensor, wanted: Tensor) -> float:
    """The difference's norm in units of the wanted one's, or of 0.001 where next to nothing is wanted."""
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-3))


def random_weights(flow: Flow) -> Flow:
    """No layer at 0, as published ones start: a wrong shortcut would not show."""
    generator = torch.Generator().manual_seed(1)
    for parameter in flow.parameters():
        parameter.data = 0.15 * torch.randn(parameter.shape, generator=generator).double()
    return flow.double()


def packed(norm: bool) -> tuple[Flow, Batch]:
    model = SLatFlowModel(8, 4, out_channels=4, io_block_channels=[16], qk_rms_norm_cross=norm, **SMALL)
    cells = torch.cartesian_prod(*[torch.arange(4)] * 3)
    layout = Packed.of_lengths([64, 30], torch.cat([cells, cells[5:35]]))
    return random_weights(StructuredLatentFlow(model)), Batch(torch.randn(94, 4).double(), layout, condition())


def dense(norm: bool) -> tuple[Flow, Batch]:
    model = SparseStructureFlowModel(4, 4, out_channels=4, qk_rms_norm_cross=norm, **SMALL)
    x = torch.randn(2, 4, 4, 4, 4).double()
    return random_weights(StructureFlow(model)), Batch(x, Dense(2), condition())


def condition() -> Condition:
    return Condition(torch.randn(2, 5, 16).double())


@pytest.fixture(params=[packed, dense], ids=["packed", "dense"])
def case(request: pytest.FixtureRequest) -> tuple[Flow, Batch]:
    torch.manual_seed(0)
    return request.param(norm=True)  # type: ignore[no-any-return]


def fresh(batch: Batch) -> Batch:
    """The same batch with nothing kept on it."""
    layout: Layout = batch.layout
    if isinstance(layout, Packed):
        layout = Packed(layout.cu_seqlens, layout.coords)
    return Batch(batch.x0, layout, Condition(batch.cond.tokens, batch.cond.negative_tokens))


def step_of(flow: Flow, batch: Batch, config: MDTConfig, guidance: Guidance) -> dict[str, Tensor]:
    """Loss terms and gradients of one MDT step."""
    student, teacher = flow.student().train().requires_grad_(True), Teachers(flow, guidance)
    nets = Nets({"teacher": teacher.teacher, "student": student}, {})
    terms = means(MDT(config).loss(fresh(batch), nets, Step(3, flow.interpolant, seed=5)))
    names, parameters = zip(*student.named_parameters(), strict=True)
    gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), parameters, allow_unused=True)
    # Queries that look at nothing but zeros have no gradient, by the shortcut as by the long way.
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return {**{k: v.detach() for k, v in terms.items()}, **dict(zip(names, filled, strict=True))}


class Teachers:
    """A frozen copy with other weights than the student's, so that their difference is not 0."""

    def __init__(self, flow: Flow, guidance: Guidance) -> None:
        from fewstep.core.backbone import Teacher

        backbone = flow.student()
        for parameter in backbone.parameters():
            parameter.data = 1.1 * parameter.data
        self.teacher = Teacher(backbone, guidance)


CONFIGS = {
    "discrete": MDTConfig(),
    "published consistency loss": MDTConfig(kind="cm"),
    "phases": MDTConfig(multiphase=2),
    "dropped conditions": MDTConfig(p_uncond=0.5),
    "two guidances": MDTConfig(guidance_vm=(1.0, 3.0), guidance_vd=0.0),
    "data velocity": MDTConfig(velocity="data"),
    "continuous": MDTConfig(kind="continuous"),
}


@pytest.mark.parametrize("guidance", [Guidance(3.0), Guidance(2.0, (0.4, 0.6))], ids=["guided", "interval"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_step_has_the_same_losses_and_gradients(
    case: tuple[Flow, Batch], config: MDTConfig, guidance: Guidance
) -> None:
    with economy():
        wanted = step_of(*case, config, guidance)
    with economy(*SWITCHES):
        got = step_of(*case, config, guidance)
    assert float(wanted["vd"]) > 0
    for name, value in wanted.items():
        assert relative(got[name], value) < ROUNDING, name


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_alone(case: tuple[Flow, Batch], switch: str) -> None:
    with economy():
        wanted = step_of(*case, MDTConfig(), Guidance(3.0))
    with economy(switch):
        got = step_of(*case, MDTConfig(), Guidance(3.0))
    for name, value in wanted.items():
        assert relative(got[name], value) < ROUNDING, name


def calls(flow: Flow, kind: str) -> list[int]:
    """A list that grows by the number of rows whenever a projection of this name runs."""
    seen: list[int] = []
    for name, module in flow.named_modules():
        if name.endswith(kind):
            module.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[0]))
    return seen


def sampled(flow: Flow, batch: Batch, cond: Condition) -> Tensor:
    return euler(flow, batch.x0, cond, batch.layout, [1.0, 0.6, 0.3, 0.0], Step(0, flow.interpolant))


def test_sampler_steps_share_keys_and_values(case: tuple[Flow, Batch]) -> None:
    flow, batch = case
    seen = calls(flow, "to_kv")
    with economy():
        wanted = sampled(flow, batch, condition_of(batch))
    plain, cond = len(seen), condition_of(batch)
    seen.clear()
    with economy("keys"):
        assert torch.equal(sampled(flow, batch, cond), wanted)
        assert (plain, len(seen)) == (6, 2)  # two blocks, three steps
        flow.model.blocks[0].cross_attn.to_kv.weight.data += 0.1  # .data hides the change from autograd
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.mul_(1.5)
        again = sampled(flow, batch, cond)
    with economy():
        assert torch.equal(again, sampled(flow, batch, condition_of(batch)))
    assert not torch.equal(again, wanted)


def condition_of(batch: Batch) -> Condition:
    return Condition(batch.cond.tokens)


@pytest.mark.parametrize("change", ["adam", "foreach", "load", "lerp"])
def test_changed_weights_make_new_keys(case: tuple[Flow, Batch], change: str) -> None:
    flow, batch = case
    cond = condition_of(batch)
    with economy("keys"):
        before = sampled(flow, batch, cond)
        changed(flow, change)
        after = sampled(flow, batch, cond)
    with economy():
        assert torch.equal(after, sampled(flow, batch, cond))
    assert not torch.equal(before, after)


def changed(flow: nn.Module, change: str) -> None:
    if change == "load":
        flow.load_state_dict({name: 2 * value for name, value in flow.state_dict().items()})
    elif change == "lerp":
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.lerp_(torch.zeros_like(parameter), 0.5)
    else:
        for parameter in flow.parameters():
            parameter.requires_grad_(True).grad = torch.ones_like(parameter)
        torch.optim.AdamW(flow.parameters(), lr=0.1, foreach=change == "foreach").step()
        flow.requires_grad_(False)


def test_blank_conditions_skip_cross_attention(case: tuple[Flow, Batch]) -> None:
    flow, batch = case
    seen = calls(flow, "cross_attn.to_q")
    zeros = Condition(torch.zeros_like(condition_of(batch).tokens))  # type: ignore[arg-type]
    t_B = torch.tensor([0.3, 0.9]).double()
    with torch.no_grad(), economy("blank"):
        blank = flow(batch.x0, t_B, batch.cond.negative(), batch.layout)
        assert seen == []
        unknown = flow(batch.x0, t_B, zeros, batch.layout)  # zeros that nobody vouches for are computed with
    assert len(seen) == 2
    assert torch.allclose(blank, unknown, rtol=1e-12, atol=1e-12)


def test_a_given_negative_is_not_blank() -> None:
    tokens = torch.ones(2, 5, 16)
    assert Condition(tokens).negative().blank
    assert not Condition(tokens, 0 * tokens).negative().blank
    assert not Condition(tokens).dropped(torch.tensor([True, False])).blank
    assert Condition(tokens).negative() is not Condition(tokens).negative()


def test_grouped_evaluations_count_the_same_samples(case: tuple[Flow, Batch]) -> None:
    flow, batch = case
    sizes: dict[bool, list[int]] = {}
    for grouped in (False, True):
        teacher, student = Teachers(flow, Guidance(3.0)).teacher, flow.student()
        seen = sizes[grouped] = []
        for network in (teacher.backbone, student):
            network.register_forward_hook(lambda m, args, out, seen=seen: seen.append(args[3].batch_size))
        with economy(*(["groups"] if grouped else [])):
            means(
                MDT(MDTConfig()).loss(
                    fresh(batch), Nets({"teacher": teacher, "student": student}, {}), Step(3, flow.interpolant)
                )
            )
    assert sizes[False] == [2] * 9
    assert sorted(sizes[True]) == [4, 4, 4, 6]


def test_repeated_layouts_and_conditions() -> None:
    layout = Packed.of_lengths([2, 3], torch.arange(15).reshape(5, 3))
    twice = layout.repeat(2)
    assert twice.lengths_list == [2, 3, 2, 3]
    assert twice is layout.repeat(2)
    assert torch.equal(twice.coords, torch.cat([layout.coords, layout.coords]))  # type: ignore[list-item,arg-type]
    one, other = Condition(torch.ones(1, 2, 3)), Condition(torch.zeros(1, 2, 3))
    assert joined([one, one]) is one.repeat(2)
    assert torch.equal(joined([one, other]).tokens, torch.cat([one.tokens, other.tokens]))  # type: ignore[list-item,arg-type]


def test_switches_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, "keys, blank")
    assert (on("keys"), on("blank"), on("groups")) == (True, True, False)
    monkeypatch.setenv(ENV, "none")
    assert not any(on(switch) for switch in SWITCHES)
    monkeypatch.setenv(ENV, "all")
    assert all(on(switch) for switch in SWITCHES)
    monkeypatch.delenv(ENV)
    assert [switch for switch in SWITCHES if not on(switch, cuda=True)] == ["graphs"]
    assert [switch for switch in SWITCHES if not on(switch)] == ["groups", "graphs"]
    monkeypatch.setenv(ENV, "group")
    with pytest.raises(FewstepError, match=r"unknown word in .*FEWSTEP_ECONOMY 'group'.*did you mean 'groups'"):
        on("keys")
