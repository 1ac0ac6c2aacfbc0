"""Cases of distillation objectives: targets, losses and gradients of each scenario, and the time tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.match import Targets, derivative
from fewstep_mdt.vd import MDT
from torch import Tensor, nn

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, Step, means
from fewstep.core.times import TimeSampler
from fewstep.methods.residual import phase_end
from golden.cases import Case, Check, Record, compare, label, part, tensors_of
from golden.flows import flow, is_flow, layout_of

TOLERANCE, TIME_TOLERANCE = 1e-4, 2e-7
BINS = 10
RENAMED = {"cfg_teacher_vm": "guidance_vm", "cfg_teacher_vd": "guidance_vd", "distill_type": "kind"}
KEPT = {"interval", "multiphase", "lambda_vm", "lambda_vd", "p_uncond"}
ELSEWHERE = {"d_norm", "t_schedule", "sigma_min", "teacher"}
Tensors = dict[str, Tensor]


def sampler_of(schedule: Record) -> TimeSampler:
    """Our time sampler for a published ``t_schedule``."""
    kind = {"logitNormal": "logit-normal"}.get(schedule["name"], schedule["name"])
    return TimeSampler(kind=kind, **schedule.get("args", {}))


def config_of(settings: Record) -> MDTConfig:
    """Our config for published settings (with their defaults)."""
    values = {RENAMED.get(k, k): v for k, v in settings.items() if k not in ELSEWHERE}
    values |= {"d_norm": "sample" if settings.get("d_norm") else "none", "d_norm_constant": 0.1}
    values["velocity"] = "data" if settings.get("teacher") == "none" else "teacher"
    if values["velocity"] == "data":  # the published trainer ignores the guidance of a teacher that it does not have
        values |= {"guidance_vm": None, "guidance_vd": None}
    if "t_schedule" in settings:
        values["t"] = sampler_of(settings["t_schedule"])
    return MDTConfig(**values)


class Recorded(Step):
    """A step whose draws are the recorded ones. Times are recorded after the shift by interval: undone in float64."""

    def __init__(self, tensors: Tensors, config: MDTConfig, sigma_min: float) -> None:
        super().__init__(index=0, interpolant=Interpolant(sigma_min))
        self.tensors, self.low = tensors, derivative(config).times(torch.zeros((), dtype=torch.float64), sigma_min)

    def randn_like(self, x: Tensor, name: str | None = None) -> Tensor:
        return self.tensors[f"input.{name}"]

    def times(self, layout: Layout, sampler: TimeSampler, name: str = "t") -> Tensor:
        return (self.tensors[f"input.{name}"].double() - self.low) / (1 - self.low)


def _networks(path: Path, record: Record, settings: Record, tensors: Tensors) -> dict[str, nn.Module]:
    nets: dict[str, nn.Module] = {}
    for role in ("student",) if settings.get("teacher") == "none" else ("student", "teacher"):
        backbone = flow(record, part(tensors, f"{role}."), str(path))
        backbone.interpolant = Interpolant(settings["sigma_min"])
        nets[role] = Teacher(backbone) if role == "teacher" else backbone
    return nets


def _bins(terms: dict[str, tuple[float, Targets]], t: Tensor, layout: Layout) -> Record:
    """The published log: each tenth of the times with its mean loss over samples."""
    found = {}
    error_B = sum(w * layout.mean((x.v_pred - x.v_tgt).detach().square()) for w, x in terms.values())
    index = (t * BINS).floor().clamp(max=BINS - 1).long()
    for i in index.unique().tolist():
        assert isinstance(error_B, Tensor)
        found[f"bin_{i}"] = {"loss": float(error_B[index == i].mean())}
    return found


def _targets(found: Targets, theirs: Tensors, term: str) -> list[Check]:
    """The recorded tensors of a term."""
    return [compare(f"{term}.{key}", getattr(found, key), value, TOLERANCE) for key, value in theirs.items()]


def _losses(losses: Tensors, theirs: Record) -> list[Check]:
    ours = {f"loss_{name}": value for name, value in losses.items()} | {"loss": torch.stack([*losses.values()]).sum()}
    checks = [compare(f"terms.{key}", ours[key], theirs[key], TOLERANCE) for key in ours]
    extra = sorted(key for key in theirs if key.startswith("loss") and key not in ours)
    return checks + [Check(f"terms.{key} (we do not make it)", float("inf"), 0.0) for key in extra]


def _gradients(model: nn.Module, full: Tensors, one: Record) -> list[Check]:
    grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
    norms = {name: float(grad.norm()) for name, grad in grads.items()}
    checks = [compare(f"grad.{name}", grads[name], value, TOLERANCE) for name, value in full.items()]
    checks += [compare(f"grad_norm.{name}", norms[name], value, TOLERANCE) for name, value in one["grad_norm"].items()]
    total = sum(value**2 for value in norms.values()) ** 0.5
    return [*checks, compare("total_grad_norm", total, one["total_grad_norm"], TOLERANCE)]


def run_scenario(path: Path, record: Record, name: str, tensors: Tensors) -> list[Check]:
    """One scenario: targets of both terms, loss terms, logged bins, every gradient."""
    one = record["scenarios"][name]
    settings = record["defaults"] | one["settings"]
    config, modules = config_of(settings), _networks(path, record, settings, tensors)
    nets, step = Nets(modules, {}), Recorded(tensors, config, settings["sigma_min"])
    x0, cond = tensors["input.x_0"], Condition(tensors["input.cond"], tensors["input.neg_cond"])
    layout = layout_of(x0, tensors.get("input.coords"))
    batch, objective, theirs = Batch(x0, layout, cond), MDT(config), part(tensors, f"{name}.")
    checks, terms = [], {}
    for key, term in zip(("vm", "vd"), objective.objectives, strict=True):
        if weight := getattr(config, f"lambda_{key}"):
            terms[key] = (weight, term.targets(batch, nets, step))  # type: ignore[attr-defined]
            checks += _targets(terms[key][1], part(theirs, f"{key}."), key)
    losses = means(objective.loss(batch, nets, step))
    torch.stack([*losses.values()]).sum().backward()
    checks += _losses(losses, one["terms"])
    for key, value in _bins(terms, tensors["input.t"], layout).items():
        checks.append(compare(f"terms.{key}", value["loss"], one["terms"][key]["loss"], TOLERANCE))
    if (end := tensors.get(f"{config.kind}_mp{config.multiphase}.t_target")) is not None:
        checks.append(compare("t_target", next(iter(terms.values()))[1].end_B, end, TIME_TOLERANCE))
    return checks + _gradients(modules["student"].model, part(theirs, "grad."), one)  # type: ignore[arg-type]


def _lacks(settings: Record) -> str:
    """What of a scenario cannot be compared, or nothing."""
    unknown = settings.keys() - RENAMED.keys() - KEPT - ELSEWHERE
    if unknown:
        return f"setting {', '.join(sorted(unknown))}"
    if settings.get("p_uncond"):
        return "dropped conditions (their draws are not recorded)"
    drawn = [k for k in ("cfg_teacher_vm", "cfg_teacher_vd") if isinstance(settings.get(k), list)]
    return f"drawn guidance {', '.join(drawn)} (the draw is not recorded)" if drawn else ""


def _sample_t(rows: list[Record]) -> list[Check]:
    """Raw draws to times."""
    checks = []
    for i, row in enumerate(rows):
        u = sampler_of(row["t_schedule"]).squash(torch.tensor(row["raw_draw"]))
        knobs = derivative(MDTConfig(kind=row["distill_type"], interval=row["interval"]))
        checks.append(
            compare(f"sample_t.{i}", knobs.times(u, row["sigma_min"]), torch.tensor(row["t"]), TIME_TOLERANCE)
        )
    return checks


def _target_t(rows: list[Record]) -> list[Check]:
    """Times to phase ends, in float32 as recorded."""
    checks = []
    for i, row in enumerate(rows):
        knobs = derivative(MDTConfig(kind=row["distill_type"], interval=row["interval"]))
        ours = phase_end(knobs.before(torch.tensor(row["t"])), row["multiphase"])
        checks.append(compare(f"target_t.{i}", ours, torch.tensor(row["t_target"]), TIME_TOLERANCE))
    return checks


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The cases of a record, if it is one of objectives or of their time tables."""
    tables = {"sample_t": _sample_t, "target_t": _target_t}
    if "scenarios" not in record:
        return [
            Case(label(root, path, key), partial(table, record[key])) for key, table in tables.items() if key in record
        ]
    if not is_flow(record["model"]):
        return [Case(label(root, path, name), missing=f"class {record['model']}") for name in record["scenarios"]]
    tensors: dict[str, Any] = {}

    def run(name: str) -> list[Check]:
        if not tensors:  # read once for all scenarios, and only when one of them is asked for
            tensors.update(tensors_of(path))
        return run_scenario(path, record, name, tensors)

    return [
        Case(label(root, path, name), missing=lack)
        if (lack := _lacks(record["defaults"] | one["settings"]))
        else Case(label(root, path, name), partial(run, name))
        for name, one in record["scenarios"].items()
    ]
