"""The signal that velocity distillation receives about the student's own samples, against the true signal.

Its gradient is v - vT at x'_t, between a sample x' of the student and fresh noise. The true v is the velocity of the
distribution of the student's samples; here, that of a large bank of them with a little noise on each. "self" takes the
student's own u = F + t dF/dt, which velocity matching drives to vT wherever it is trained: at its optimum the signal
is 0, whatever the samples look like. "critic" is a network trained on the student's samples by flow matching.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from fewstep_images.dataset import SmoothedImages
from fewstep_images.fitting import fitted
from fewstep_images.network import ImageFlow
from fewstep_images.suite import ImageSuite
from torch import Tensor

from benchmarks.quality import theory_exact as exact
from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Dense

TIMES = (0.5, 0.6, 0.7, 0.8, 0.9)
BANK, SMOOTHING = 60_000, 0.2
CRITIC_STEPS, CRITIC_BATCH, CRITIC_LR = 600, 128, 2e-3
HEAD = f"""## What velocity distillation is told

Of a network that velocity matching trained for a short time on digits of 8 x 8 with noise of 0.4 (D = 0.1, 400
iterations of 128), at x'_t between its samples and fresh noise. The true signal is the velocity of a bank of
{BANK} of its samples, with noise of {SMOOTHING} on each, minus the teacher's. **self**: the student's own F + t
dF/dt minus the teacher's, as published. **critic**: a network trained on the samples for {CRITIC_STEPS}
iterations, minus the teacher's. **exact samples**: the true signal of exact samples in place of the student's,
which is 0 but for the error of the bank; it is the share of the true signal that is not to be trusted.

| signal | t | cosine with the true signal | size / true size | true size |
|---|---|---|---|---|"""


@dataclass(frozen=True)
class Signal:
    """A signal against the true one at time t: cosine, ratio of sizes, and the root mean square of the true one."""

    name: str
    t: float
    cosine: float
    ratio: float
    true_size: float


def table(found: list[Signal]) -> list[str]:
    """In Markdown."""
    rows = [f"| {o.name} | {o.t:g} | {o.cosine:.3f} | {o.ratio:.3f} | {o.true_size:.4f} |" for o in found]
    return [HEAD, *rows]


def signals(student: ImageFlow, suite: ImageSuite, data: SmoothedImages) -> list[Signal]:
    """All signals at all times; the samples x' come from held-out noise and are not in the bank."""
    draws = torch.Generator().manual_seed(1)
    batch, labels = suite.prompts(), data.mixture.draw_labels(BANK, draws)
    noise = suite.noise(0, batch)
    bank = samples(student, torch.randn(BANK, noise.shape[1], generator=draws), labels)
    true_bank = torch.cat([data.mixture.sample(part, draws) for part in labels.split(5000)])
    fakes, critic = samples(student, noise, data.held_out_labels()), trained(student, bank, labels, draws)
    found = []
    for t in TIMES:
        t_B, fresh = torch.full((len(noise),), t), torch.randn(noise.shape, generator=draws)
        real_t, x_t = ((1 - t) * x0 + t * fresh for x0 in (batch.x0, fakes))
        teacher = suite.exact(x_t, t_B, batch.cond, batch.layout)
        true = exact.velocity_of(bank, labels, SMOOTHING, x_t, t_B, batch.cond) - teacher
        on_real = exact.velocity_of(true_bank, labels, SMOOTHING, real_t, t_B, batch.cond)
        with torch.no_grad():
            told = {
                "self": own_velocity(student, x_t, t_B, teacher, batch) - teacher,
                "critic": critic(x_t, t_B, batch.cond, batch.layout) - teacher,
                "exact samples": on_real - suite.exact(real_t, t_B, batch.cond, batch.layout),
            }
        size = exact.rms(true)
        found += [Signal(name, t, exact.cosine(x, true), exact.rms(x) / size, size) for name, x in told.items()]
    return sorted(found, key=lambda one: ("self", "critic", "exact samples").index(one.name))


@torch.no_grad()
def samples(student: ImageFlow, noise: Tensor, labels: Tensor) -> Tensor:
    """The student's one-step samples from this noise, for these digits."""
    average: Tensor = student(noise, torch.ones(len(noise)), digits(labels), Dense(len(noise)))
    return noise - average


def digits(labels: Tensor) -> Condition:
    """The one-hot condition."""
    return Condition(torch.nn.functional.one_hot(labels, 10).float())


def own_velocity(student: ImageFlow, x_t: Tensor, t_B: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """u = F + t dF/dt along the teacher's direction."""

    def average(x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = student(x, t, batch.cond, batch.layout)
        return found

    value, slope = torch.func.jvp(average, (x_t, t_B), (teacher, torch.ones_like(t_B)))
    u: Tensor = value + batch.layout.expand(t_B, x_t) * slope
    return u


def trained(student: ImageFlow, bank: Tensor, labels: Tensor, draws: torch.Generator) -> ImageFlow:
    """A critic: flow matching on the student's samples, with the noise of the bank, from the undistilled network."""
    critic = copy.deepcopy(fitted(student.config)).train().requires_grad_(True)
    adam = torch.optim.Adam(critic.parameters(), CRITIC_LR)
    for step in range(CRITIC_STEPS):
        adam.param_groups[0]["lr"] = CRITIC_LR * 0.5 * (1 + math.cos(math.pi * step / CRITIC_STEPS))
        rows = torch.randint(len(bank), (CRITIC_BATCH,), generator=draws)
        t_B, layout = torch.rand(CRITIC_BATCH, generator=draws), Dense(CRITIC_BATCH)
        x0 = bank[rows] + SMOOTHING * torch.randn(CRITIC_BATCH, bank.shape[1], generator=draws)
        eps = torch.randn(x0.shape, generator=draws)
        x_t = critic.interpolant.interpolate(x0, eps, t_B, layout)
        adam.zero_grad()
        (critic(x_t, t_B, digits(labels[rows]), layout) - (eps - x0)).square().mean().backward()
        adam.step()
    return critic.eval()
