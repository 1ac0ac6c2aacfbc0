"""Both MDT terms with their nine evaluations run as four larger ones. Same draws, same losses, same gradients.

With B samples: F(x_t, t) and F(z', 1) with graph (2B); the teacher on x_t and x'_t with condition (2B) and without (2B,
apart because cross attention to zeros is free); F(x_t - D v, t - D), F(x'_t, t), F(x'_t - D v', t - D) without graph
(3B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition, joined
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, Step
from fewstep.methods.point import Look, Noised, dropped
from fewstep.ops.economy import on
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.match import Targets, look, targets_at

Pair = tuple[Tensor, Tensor]


def applies(config: MDTConfig, batch: Batch, nets: Nets, step: Step) -> bool:
    """Whether this step has both terms, and a derivative by differences (a jvp has value and tangent in one pass)."""
    both = config.lambda_vm > 0 and config.lambda_vd > 0 and step.index >= config.vd_after
    ordinary = config.velocity == "data" or isinstance(getattr(nets, "teacher", None), Teacher)
    return on("groups", batch.x0.is_cuda) and both and config.kind != "continuous" and ordinary


def targets(config: MDTConfig, batch: Batch, nets: Nets, step: Step) -> tuple[Targets, Targets]:
    """What both terms compare, as ``targets`` of each gives it."""
    real, own = look(config, "vm"), look(config, "vd")
    seen = real.draw(batch, step)
    noise = step.randn_like(batch.x0, "noise_fake")
    ones = torch.ones(batch.layout.batch_size, device=noise.device, dtype=noise.dtype)
    blind = dropped(batch, step, config.p_uncond, "drop/fake")
    value, v_fake = _evaluated(nets.student, [(seen.x_t, seen.t_B), (noise, ones)], [seen.cond, blind], batch.layout)
    v_fake = v_fake.to(noise.dtype)
    x_fake = noise - v_fake
    samples = replace(batch, x0=x_fake.detach())
    made = own.draw(samples, step)
    with torch.no_grad():
        velocities = _velocities((real, own), (batch, samples), (seen, made), nets, step)
        points = [real.knobs.earlier(d.x_t, d.t_B, v) for d, v in zip((seen, made), velocities, strict=True)]
        wanted = [points[0], (made.x_t, made.t_B.double()), points[1]]
        before, there, before_made = _evaluated(nets.student, wanted, [seen.cond, made.cond, made.cond], batch.layout)
    vm = real.point(seen, real.knobs.discrete(value, before, velocities[0], batch.layout), batch)
    vd = own.point(made, own.knobs.discrete(there, before_made, velocities[1], batch.layout), samples)
    return targets_at(config, vm), replace(targets_at(config, vd), x_fake=x_fake, v_fake=v_fake)


def _evaluated(
    network: torch.nn.Module, points: Sequence[Pair], conditions: Sequence[Condition], layout: Layout
) -> tuple[Tensor, ...]:
    """A network at several points (x, t_B) of the same layout, in one pass."""
    x, t_B = torch.cat([x for x, _ in points]), torch.cat([t for _, t in points])
    found: Tensor = network(x, t_B, joined(conditions), layout.repeat(len(points)))
    return found.chunk(len(points))


def _velocities(
    looks: tuple[Look, Look], batches: tuple[Batch, Batch], drawn: tuple[Noised, Noised], nets: Nets, step: Step
) -> list[Tensor]:
    """The guided teacher's velocity (or the data's) at both terms' points, each with its own guidance."""
    if looks[0].config.velocity == "data":
        found = [step.interpolant.velocity(b.x0, d.noise) for b, d in zip(batches, drawn, strict=True)]
        return [v.to(d.x_t.dtype) for v, d in zip(found, drawn, strict=True)]
    layout, cond = batches[0].layout, batches[0].cond
    points = [(d.x_t, d.t_B) for d in drawn]
    positive = _evaluated(nets.teacher.backbone, points, [cond, cond], layout)
    guidance = [one.guidance(step) or nets.teacher.guidance for one in looks]
    wanted = [cond.tokens is not None and not g.idle(t_B) for g, (_, t_B) in zip(guidance, points, strict=True)]
    asked = [p for p, want in zip(points, wanted, strict=True) if want]
    negatives = iter(_evaluated(nets.teacher.backbone, asked, [cond.negative()] * len(asked), layout) if asked else ())
    return [
        g.guided(v, next(negatives), d.t_B, layout).to(d.x_t.dtype) if want else v.to(d.x_t.dtype)
        for v, g, d, want in zip(positive, guidance, drawn, wanted, strict=True)
    ]
