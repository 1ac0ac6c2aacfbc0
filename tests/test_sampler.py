"""Samplers on flows whose solution is known."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import GAUSSIAN, PhasedMap, largest
from fewstep_toy.analytic import AnalyticFlow, GaussianMap
from torch import Tensor

from fewstep.config.base import validate
from fewstep.core.batch import Condition
from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance, VelocityField
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Step
from fewstep.core.samplers import Sampler, consistency, euler, gamma, heun, jump
from fewstep.core.times import step_grid
from fewstep.errors import FewstepError
from fewstep.methods.residual import phase_end
from fewstep.testing import TinyBackbone, tiny_batch

COUNT = 200
SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "consistency": consistency,
    "jump": jump,
    "gamma": gamma,
}


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def exact() -> GaussianMap:
    return GaussianMap(GAUSSIAN).double()


def run(sampler: Sampler, field: VelocityField, noise: Tensor, steps: int, **more: Any) -> Tensor:
    grid = step_grid(steps, more.pop("rescale_t", 1.0))
    return sampler(field, noise, Condition(), Dense(len(noise)), grid, more.pop("step", Step(0, Interpolant())), **more)


def transported(noise: Tensor) -> Tensor:
    """The Gaussian's flow map from t = 1 to 0."""
    flow = AnalyticFlow(GAUSSIAN)
    return flow.means[0].double() + flow.std * noise


@pytest.mark.parametrize("rescale_t", [1.0, 3.0])
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(sampler: str, order: int, rescale_t: float, noise: Tensor) -> None:
    flow = AnalyticFlow(GAUSSIAN).double()
    truth = transported(noise)
    errors = [largest(run(SAMPLERS[sampler], flow, noise, n, rescale_t=rescale_t), truth) for n in (160, 320, 640)]
    for rough, fine in pairwise(errors):
        assert 0.85 * 2**order < rough / fine < 1.15 * 2**order
    assert errors[-1] < (0.01 if order == 1 else 2e-5)


def test_the_flow_carries_noise_to_the_targets_density() -> None:
    mixture = AnalyticFlow(GAUSSIAN.model_copy(update={"target": "moons"})).double()
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = run(heun, mixture, noise, 60)
    assert largest(x.mean(0), mixture.means.mean(0)) < 0.05
    cov = torch.cov(mixture.means.T, correction=0) + mixture.std**2 * torch.eye(2)
    assert largest(torch.cov(x.T), cov) < 0.08


def test_one_jump_of_the_exact_average_velocity_is_the_flow_map(noise: Tensor, exact: GaussianMap) -> None:
    for sampler in (euler, consistency, jump, gamma):
        assert largest(run(sampler, exact, noise, 1), transported(noise)) < 1e-12


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_jumps_are_exact_for_any_number_of_steps(steps: int, noise: Tensor, exact: GaussianMap) -> None:
    """The semigroup: jumps of the two-time map compose to the whole one, on any grid."""
    for rescale_t in (1.0, 3.0):
        assert largest(run(jump, exact, noise, steps, rescale_t=rescale_t), transported(noise)) < 1e-12


def test_consistency_is_exact_after_its_last_noise(noise: Tensor, exact: GaussianMap) -> None:
    """Each jump of the exact map lands on data; noise put on data and taken back gives the target's density."""
    seen: list[Tensor] = []
    x = run(consistency, exact, noise, 2, on_step=lambda i, x, data: seen.append(x.clone()))
    t_B = torch.full((COUNT,), 0.5, dtype=torch.float64)
    assert largest(seen[0] - 0.5 * exact(seen[0], t_B, Condition(), Dense(COUNT)), x) < 1e-12
    fresh = Step(0, Interpolant()).randn_like(noise, "renoise/0")
    assert largest(seen[0], 0.5 * transported(noise) + 0.5 * fresh) < 1e-12
    many = torch.randn(20000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for steps in (1, 2, 4):
        out = run(consistency, exact, many, steps)
        assert largest(out.mean(0), exact.mean) < 0.02
        assert largest(out.std(0), torch.full((2,), exact.std)) < 0.02


def test_euler_steps_of_a_one_step_student_are_not_the_flow(noise: Tensor, exact: GaussianMap) -> None:
    """Why a student names its sampler: an average velocity down to 0 is none to stop half-way with."""
    errors = [largest(run(euler, exact, noise, n), transported(noise)) for n in (1, 2, 4)]
    assert errors[0] < 1e-12 < 0.1 < errors[1] < errors[2]


@pytest.mark.parametrize("rescale_t", [1.0, 3.0])
def test_euler_between_phase_ends_is_exact_for_a_phased_student(rescale_t: float, noise: Tensor) -> None:
    student = PhasedMap()

    class Phased:
        def __call__(
            self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None
        ) -> Tensor:
            student.end_B = phase_end(t_B - 1e-3, 4, rescale_t)
            found: Tensor = student(x, t_B, cond, layout)
            return found

    assert largest(run(euler, Phased(), noise, 4, rescale_t=rescale_t), transported(noise)) < 1e-12
    assert largest(run(euler, Phased(), noise, 3, rescale_t=rescale_t), transported(noise)) > 0.01


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_reports_every_step_and_the_last_state_is_the_result(name: str, noise: Tensor, exact: GaussianMap) -> None:
    seen: list[tuple[int, Tensor]] = []
    x = run(SAMPLERS[name], exact, noise, 3, on_step=lambda i, state, data: seen.append((i, state)))
    assert [i for i, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][1], x)
    assert not x.requires_grad


@pytest.mark.parametrize("name", ["euler", "consistency", "jump"])
def test_reported_data_are_the_students_jumps(name: str, noise: Tensor, exact: GaussianMap) -> None:
    seen: list[Tensor] = []
    run(SAMPLERS[name], exact, noise, 1, on_step=lambda i, state, data: seen.append(data))
    assert largest(seen[0], transported(noise)) < 1e-12


@pytest.mark.parametrize("sampler", [euler, jump, gamma.with_noise(0.0)], ids=["euler", "jump", "gamma"])
def test_reported_data_are_where_the_line_through_both_states_ends(
    sampler: Sampler, noise: Tensor, exact: GaussianMap
) -> None:
    states, ends = [noise], []
    run(sampler, exact, noise, 3, on_step=lambda i, state, data: (states.append(state), ends.append(data)))
    for (x_t, x_s), (t, s), end in zip(pairwise(states), pairwise(step_grid(3)), ends, strict=True):
        assert largest(end, x_t - t / (t - s) * (x_t - x_s)) < 1e-12


def test_the_data_that_heun_reports_are_those_of_the_velocity_after_the_step(noise: Tensor) -> None:
    """Up to the second order of the step: it knows that velocity at an Euler step's end."""
    flow, missed = AnalyticFlow(GAUSSIAN).double(), []
    half = torch.full((COUNT,), 0.5, dtype=torch.float64)
    for steps in (20, 40):
        seen: list[tuple[Tensor, Tensor]] = []
        run(heun, flow, noise, steps, on_step=lambda i, state, data, seen=seen: seen.append((state, data)))
        x, data = seen[steps // 2 - 1]
        missed.append(largest(data, x - 0.5 * flow(x, half, Condition(), Dense(COUNT))))
    assert 3 < missed[0] / missed[1] < 5


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_data_of_the_last_step_are_the_result(name: str, noise: Tensor, exact: GaussianMap) -> None:
    seen: list[Tensor] = []
    x = run(SAMPLERS[name], exact, noise, 3, on_step=lambda i, state, data: seen.append(data))
    assert largest(seen[-1], x) < 1e-12


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_packed_is_dense(name: str, noise: Tensor, exact: GaussianMap) -> None:
    dense = run(SAMPLERS[name], exact, noise, 3)
    layout = Packed.of_lengths([1] * COUNT)
    packed = SAMPLERS[name](exact, noise, Condition(), layout, step_grid(3), Step(0, Interpolant()))
    assert torch.equal(dense, packed)


def test_noise_of_the_consistency_sampler_comes_from_the_seed_alone(noise: Tensor, exact: GaussianMap) -> None:
    one, same, other = (run(consistency, exact, noise, 2, step=Step(0, Interpolant(), seed=s)) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert largest(one, other) > 0.1


def test_sigma_min_is_kept_by_the_renoising(noise: Tensor) -> None:
    config = GAUSSIAN.model_copy(update={"sigma_min": 0.2})
    exact = GaussianMap(config).double()
    seen: list[Tensor] = []
    run(consistency, exact, noise, 2, step=Step(0, Interpolant(0.2)), on_step=lambda i, x, data: seen.append(x))
    data = noise - exact(noise, torch.ones(COUNT, dtype=torch.float64), Condition(), Dense(COUNT))
    fresh = Step(0, Interpolant(0.2)).randn_like(noise, "renoise/0")
    half = torch.full((COUNT,), 0.5, dtype=torch.float64)
    assert largest(seen[0], Interpolant(0.2).interpolate(data, fresh, half, Dense(COUNT))) < 1e-12


def test_the_exact_map_at_one_time_is_the_velocity(noise: Tensor) -> None:
    """And between two times it is what an accurate solver finds."""
    for sigma_min in (0.0, 0.2):
        config = GAUSSIAN.model_copy(update={"sigma_min": sigma_min})
        exact, flow, layout = GaussianMap(config).double(), AnalyticFlow(config).double(), Dense(COUNT)
        for t in (0.0, 0.4, 1.0):
            t_B = torch.full((COUNT,), t, dtype=torch.float64)
            assert (
                largest(exact(noise, t_B, Condition(), layout, s_B=t_B), flow(noise, t_B, Condition(), layout)) < 1e-12
            )
        solved = heun(
            flow, noise, Condition(), layout, [1 - 0.7 * i / 300 for i in range(301)], Step(0, Interpolant(sigma_min))
        )
        ends = (torch.full((COUNT,), t, dtype=torch.float64) for t in (1.0, 0.3))
        average = exact(noise, next(ends), Condition(), layout, s_B=next(ends))
        assert largest(noise - 0.7 * average, solved) < 1e-4


@pytest.mark.parametrize(("t", "inside"), [(0.2, True), (0.8, True), (0.19, False), (0.81, False), (0.5, True)])
def test_both_ends_of_a_guidance_interval_are_guided(t: float, inside: bool) -> None:
    guidance, t_B = Guidance(3.0, (0.2, 0.8)), torch.tensor([t], dtype=torch.float64)
    assert guidance.active(t) == inside
    assert guidance.idle(t_B) != inside
    positive, negative = torch.ones(1, 2), torch.zeros(1, 2)
    assert guidance.guided(positive, negative, t_B, Dense(1)).tolist() == [[3.0 if inside else 1.0] * 2]
    assert not Guidance(1.0).active(t)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 3.0])
def test_any_scale_but_1_mixes_both_predictions(scale: float) -> None:
    """u + g (c - u), here with c = 2 and u = 1; a scale below 1 too."""
    asked = []

    def field(x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        assert cond.tokens is not None
        asked.append(float(cond.tokens[0, 0]))
        return 1 + cond.tokens

    found = Guidance(scale).of(field, torch.zeros(1, 1), torch.ones(1), Condition(torch.ones(1, 1)), Dense(1))
    assert found.tolist() == [[1 + scale]]
    assert asked == ([1.0] if scale == 1 else [1.0, 0.0])


@pytest.mark.parametrize("lengths", [None, [5, 2, 9]])
def test_rescaled_guidance_predicts_data_of_the_conditional_spread(lengths: list[int] | None) -> None:
    """By the published definitions, sample by sample: dense data have unbiased deviations, packed ones biased."""
    layout = Dense(3) if lengths is None else Packed.of_lengths(lengths)
    shape = (3, 2, 4) if lengths is None else (16, 4)
    draws = torch.Generator().manual_seed(0)
    x, positive, negative = torch.randn(3, *shape, generator=draws, dtype=torch.float64)
    t_B, s, f = torch.tensor([1.0, 0.6, 0.59], dtype=torch.float64), 0.01, 0.7
    guidance = Guidance(3.0, (0.6, 1.0), f)
    guided = guidance.guided(positive, negative, t_B, layout)
    out = guidance.rescaled(guided, positive, x, t_B, layout, Interpolant(s))
    for i in range(3):
        rows = torch.tensor([i])
        x_i, c, u, got = (layout.select(v, rows)[0] for v in (x, positive, negative, out))
        b = s + (1 - s) * t_B[i]
        v = 3 * c - 2 * u if i < 2 else c
        data, wanted = (1 - s) * x_i - b * v, (1 - s) * x_i - b * c
        ratio = wanted.std() / data.std() if lengths is None else wanted.std(correction=0) / data.std(correction=0)
        moved = f * ratio * data + (1 - f) * data if i < 2 else data
        torch.testing.assert_close(got, ((1 - s) * x_i - moved) / b)


def test_rescaling_leaves_what_it_cannot_rescale() -> None:
    flat, t_B = torch.ones(1, 4), torch.ones(1)
    for guidance in (Guidance(3.0, rescale=1.0), Guidance(0.0, rescale=1.0), Guidance(3.0)):
        assert torch.equal(guidance.rescaled(flat, flat, flat, t_B, Dense(1), Interpolant()), flat)
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(Guidance(0.0, rescale=1.0).rescaled(x, 3 * x, x, t_B, Dense(1), Interpolant()), x)


def test_gamma_sampling_never_jumps_beyond_the_data(noise: Tensor, exact: GaussianMap) -> None:
    """At gamma = 1 no noise is kept, less than sigma_min: the jump ends at 0 and not at a negative time."""
    asked: list[Tensor] = []
    hook = exact.register_forward_pre_hook(lambda _module, args, more: asked.append(more["s_B"]), with_kwargs=True)
    run(gamma.with_noise(1.0), exact, noise, 3, step=Step(0, Interpolant(0.1)))
    hook.remove()
    assert torch.stack(asked).unique().tolist() == [0.0]


def test_a_contracts_guidance_is_a_scale() -> None:
    """g c + (1 - g) u, in one step from noise to data."""
    network, batch = TinyBackbone().double(), tiny_batch()
    ones_B, step = torch.ones(3, dtype=torch.float64), Step(0, Interpolant())
    with torch.no_grad():
        found = Contract(guidance=3.0).sample(network, batch.x0, batch.cond, batch.layout, 1, step)
        c, u = (network(batch.x0, ones_B, cond, batch.layout) for cond in (batch.cond, batch.cond.negative()))
    assert largest(found, batch.x0 - (3 * c - 2 * u)) < 1e-12


def test_a_contract_counts_in_words() -> None:
    assert Contract(steps=(1,)).made_for == "1 step"
    assert Contract(steps=(4,)).made_for == "4 steps"
    assert Contract(steps=(1, 2)).made_for == "1, 2 steps"


def test_the_ends_of_the_noise_setting_are_other_samplers(noise: Tensor, exact: GaussianMap) -> None:
    for many in (2, 5):
        for a, b in ((consistency, euler), (gamma, jump)):
            assert largest(run(a.with_noise(0.0), exact, noise, many), run(b, exact, noise, many)) < 1e-12
        assert largest(run(gamma.with_noise(1.0), exact, noise, many), run(consistency, exact, noise, many)) < 1e-12
    assert (consistency.noise, gamma.noise, euler.noise) == (1.0, 0.5, None)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_gamma_sampling_is_algorithm_3_of_its_paper(share: float, noise: Tensor, exact: GaussianMap) -> None:
    """Written in the paper's variables, x' = x / (1 - t) with noise level l = t / (1 - t): the network jumps from l to
    sqrt(1 - gamma^2) l_next, and gamma l_next z is added."""
    grid = [0.9, 0.6, 0.2, 0.0]
    levels = [t / (1 - t) for t in grid]
    x = noise / (1 - grid[0])
    for i, (level, following) in enumerate(pairwise(levels)):
        low = (1 - share**2) ** 0.5 * following
        t, r = level / (1 + level), low / (1 + low)
        t_B, r_B = (torch.full((COUNT,), time, dtype=torch.float64) for time in (t, r))
        here = (1 - t) * x
        jumped = here - (t - r) * exact(here, t_B, Condition(), Dense(COUNT), s_B=r_B)
        z = Step(0, Interpolant()).randn_like(noise, f"renoise/{i}")
        x = jumped / (1 - r) + share * following * z
    found = gamma.with_noise(share)(exact, noise, Condition(), Dense(COUNT), grid, Step(0, Interpolant()))
    assert largest(found, x) < 1e-12


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("sigma_min", [0.0, 0.1])
def test_gamma_sampling_of_the_exact_map_keeps_the_density(share: float, sigma_min: float) -> None:
    """Each of its steps ends in the marginal at s, whatever the share of fresh noise."""
    exact = GaussianMap(GAUSSIAN.model_copy(update={"sigma_min": sigma_min})).double()
    many = torch.randn(40000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen: list[Tensor] = []
    step = Step(0, Interpolant(sigma_min))
    run(gamma.with_noise(share), exact, many, 4, step=step, on_step=lambda i, x, data: seen.append(x))
    for x, s in zip(seen, step_grid(4)[1:], strict=True):
        assert largest(x.mean(0), (1 - s) * exact.mean) < 0.02
        wanted = exact.sigma(torch.tensor(s, dtype=torch.float64)).detach()
        if share < 1 or sigma_min == 0:  # else the data's own sigma_min is there twice, as in ``consistency``
            assert largest(x.std(0) / wanted, torch.ones(2)) < 0.02


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_renoising_with_a_share_is_ddim_with_eta(share: float, noise: Tensor, exact: GaussianMap) -> None:
    """x_s = (1 - s) x0 + s (sqrt(1 - eta^2) eps + eta z), with x0 and eps at the ends of the line through x_t."""
    x0, eps, s = transported(noise), noise, 0.5
    z = Step(0, Interpolant()).randn_like(noise, "renoise/0")
    seen: list[Tensor] = []
    run(consistency.with_noise(share), exact, noise, 2, on_step=lambda i, x, data: seen.append(x))
    assert largest(seen[0], (1 - s) * x0 + s * ((1 - share**2) ** 0.5 * eps + share * z)) < 1e-12


def test_a_contract_names_its_sampler_with_its_setting(exact: GaussianMap, noise: Tensor) -> None:
    contract = Contract(sampler="gamma", noise=0.3, two_time=True)
    assert contract.sampling == "gamma:0.3"
    named = contract.load_sampler()
    assert torch.equal(run(named, exact, noise, 3), run(gamma.with_noise(0.3), exact, noise, 3))
    assert not torch.equal(run(named, exact, noise, 3), run(gamma, exact, noise, 3))
    assert contract.sampled_by("gamma") == contract
    assert [contract.sampled_by(text).sampling for text in ("gamma:1", "jump")] == ["gamma:1", "jump"]
    assert Contract(sampler="consistency").sampled_by("consistency:0.5").noise == 0.5
    assert contract.sampled_by("jump").sampled_by("gamma").load_sampler().noise == 0.5


@pytest.mark.parametrize(
    ("own", "text", "message"),
    [
        ("euler", "gama", "unknown sampler 'gama'.*did you mean 'gamma'"),
        (
            "euler",
            "gamma",
            "sampler 'gamma' passes a target time, and the student of sampler 'euler' takes none; .*heun",
        ),
        ("jump", "consistency", "sampler 'consistency' passes no target time, .* takes one; accepted: gamma, jump"),
        ("euler", "heun:0.5", "sampler: got 'heun:0.5'; accepted: 'heun' alone, which adds no noise"),
        ("euler", "consistency:1.5", "got 'consistency:1.5'; accepted: consistency:NOISE, a share .* from 0 to 1"),
        ("jump", "gamma:", "got 'gamma:'; accepted: gamma:NOISE"),
    ],
)
def test_a_sampler_that_a_student_cannot_use_is_refused(own: str, text: str, message: str) -> None:
    with pytest.raises(FewstepError, match=message):
        Contract(sampler=own).sampled_by(text)


def test_a_student_is_sampled_at_the_times_it_was_trained_at() -> None:
    contract = Contract(times=(1.0, 0.9, 0.7, 0.4))
    grids = {steps: contract.grid(steps) for steps in (1, 2, 3, 4)}
    assert grids == {1: [1.0, 0.0], 2: [1.0, 0.7, 0.0], 3: [1.0, 0.9, 0.7, 0.0], 4: [1.0, 0.9, 0.7, 0.4, 0.0]}
    assert contract.grid(5) == step_grid(5)
    for wrong in ((0.9, 0.5), (1.0, 1.0), (1.0, 0.0)):
        with pytest.raises(FewstepError, match="fall from 1"):
            validate(Contract, {"times": wrong})
