"""Cases of TRELLIS.2's flows: models, rotary embedding, samplers, guidance, derivatives, the training loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from fewstep_trellis.checkpoint import build_model
from fewstep_trellis.configs import official_config, official_names
from fewstep_trellis.weights import fit
from fewstep_trellis2.configs import FOLDER
from fewstep_trellis2.latents import ShapeStage, TextureCondition, TextureStage
from fewstep_trellis2.models import MODELS, SparseStructureFlowModel
from fewstep_trellis2.models.rotary import rotary_tables
from fewstep_trellis2.structure import StructureStage
from torch import Tensor, nn

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Packed
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.core.times import step_grid
from fewstep.ops.norms import rotate_pairs, wide
from golden.cases import Case, Check, Record, compare, exact, label, of_trellis2, part, tensors_of
from golden.flows import layout_of

Tensors = dict[str, Tensor]
TOLERANCE, MANY_STEPS, HALF = 1e-5, 1e-4, 2e-2
ROTARY_HALF = {torch.float32: TOLERANCE, torch.bfloat16: 8e-3, torch.float16: 1e-3}
TORSO = "_torso"


def build(record: Record, tensors: Tensors, **changes: Any) -> nn.Module:
    """The model of a record, in evaluation mode."""
    model = build_model(record["class"], record["args"] | changes, "meta", MODELS)
    fit(model, part(tensors, "state."), record["class"])
    return model.eval()


class Run:
    """A record's model with its inputs, as a function of what a case changes.

    Args:
        model: of either class.
        given: inputs: x or feats, coords, concat_cond, cond.
    """

    def __init__(self, model: nn.Module, given: Tensors) -> None:
        self.model, self.given = model, given
        self.dense = isinstance(model, SparseStructureFlowModel)
        self.x = given["x"] if "x" in given else given["feats"]
        self.layout = layout_of(self.x, given.get("coords"))

    def __call__(self, t: Tensor, x: Tensor | None = None, cond: Any = None) -> Tensor:
        x, cond = self.x if x is None else x, self.given["cond"] if cond is None else cond
        if self.dense:
            return cast(Tensor, self.model(x, t, cond))
        return cast(Tensor, self.model(x, t, cond, self.layout, concat_cond=self.given.get("concat_cond")))


def run_model(path: Path, record: Record) -> list[Check]:
    """Outputs at every recorded time, with conditions of several lengths, of half torsos, and intermediate values."""
    tensors = tensors_of(path)
    given, expected, mids = (part(tensors, prefix) for prefix in ("input.", "output.", "mid."))
    found: Tensors = {}
    with torch.no_grad():
        run = Run(build(record, tensors), given)
        modules = dict(run.model.named_modules())
        hooks = [modules[name].register_forward_hook(partial(_keep, found, name)) for name in mids if name in modules]
        checks = []
        for name, wanted in expected.items():
            stem = name.partition("_")[0]
            what, tolerance = name.removeprefix(f"{stem}_"), TOLERANCE
            if what.endswith(TORSO):
                half = build(record, tensors, dtype=what.removesuffix(TORSO).removeprefix("t_"))
                ours, tolerance = Run(half, given)(given["t"]), HALF
            elif what.endswith("cond_list"):
                ours = run(given["t"], cond=list(part(given, "cond_list.").values()))
            else:
                found.clear()
                ours = run(given[what])
                checks += [
                    compare(f"mid.{n}", found[n], mids[n], TOLERANCE) for n in mids if what == "t" and n in found
                ]
            checks.append(compare(name, ours, wanted, tolerance))
        for hook in hooks:
            hook.remove()
    return checks


def _keep(found: Tensors, name: str, module: nn.Module, given: Any, output: Tensor) -> None:
    found[name] = output


def run_state_dict(name: str, record: Record) -> list[Check]:
    """The configuration of this name, and its keys, shapes, types and order; ``rope_phases`` is not stored."""
    args = record["args"] | record["built_with"]
    model = build_model(record["class"], args, "meta", MODELS)
    parameters = {key for key, _ in model.named_parameters()}
    ours = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch."), "param" if key in parameters else "buffer"]
        for key, value in model.state_dict().items()
    ]
    return [
        exact(
            "configuration",
            name not in official_names(FOLDER) or official_config(name, FOLDER) == (record["class"], args),
        ),
        exact("state dict", ours == [row for row in record["tensors"] if row[0] != "rope_phases"]),
    ]


def run_rotary(path: Path, name: str, one: Record) -> list[Check]:
    """Tables, and queries and keys turned in each type."""
    tensors = tensors_of(path)
    coords, own = tensors["coords"][:, 1:], part(tensors, f"{name}.")
    tables = rotary_tables(coords, one["head_dim"], tuple(one["rope_freq"]))
    checks = [compare("phases", torch.stack(tables, -1), own["phases_real_imag"], TOLERANCE)]
    for key, wanted in own.items():
        which, turned, _ = key.partition("_rot_")
        if turned:
            given = own[which].to(wanted.dtype)
            ours = rotate_pairs(wide(given), tables).to(wanted.dtype)
            checks.append(compare(key, ours.float(), wanted.float(), ROTARY_HALF[wanted.dtype]))
    return checks


def _guidance(params: Record, guided: bool = True) -> Guidance:
    if not guided or "guidance_strength" not in params:
        return Guidance()
    low, high = params.get("guidance_interval", (0.0, 1.0))
    return Guidance(params["guidance_strength"], (low, high), params.get("guidance_rescale", 0.0))


class _Asked:
    """The times and conditions that a network was asked for."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []

    def __call__(self, backbone: nn.Module, given: tuple[Any, ...], named: Any, output: Tensor) -> None:
        time, negative = float((1000 * given[1].double()).to(given[0].dtype)[0]), given[2] is not self.positive
        if negative:
            self.calls[-1][1] += "u"
        else:
            self.calls.append([time, "c"])

    positive: Condition


def run_sampler(path: Path, sigma_min: float, name: str, one: Record, run: Run) -> list[Check]:
    """One sampler run from the recorded noise: time grid, evaluations, states, samples."""
    params, tensors = one["params"], tensors_of(path)
    grid, layout = step_grid(params["steps"], params.get("rescale_t", 1.0)), run.layout
    cond = Condition(tensors[one["cond"]], None if one["neg_cond"] is None else tensors[one["neg_cond"]])
    if run.dense:
        backbone: Any = StructureStage(run.model)
    elif one["concat_cond"] is None:
        backbone = ShapeStage(run.model)
    else:
        assert isinstance(layout, Packed)
        backbone = TextureStage(run.model)
        cond = TextureCondition.of(cond, tensors[one["concat_cond"]], layout)
    found: Tensors = {}

    def keep(i: int, x: Tensor, data: Tensor) -> None:
        found[f"pred_x_t.{i}"], found[f"pred_x_0.{i}"] = x, data

    asked = _Asked()
    asked.positive = cond
    backbone.register_forward_hook(asked, with_kwargs=True)
    field = Teacher(backbone, _guidance(params, one["neg_cond"] is not None))
    found["samples"] = euler(field, tensors["noise"], cond, layout, grid, Step(0, Interpolant(sigma_min)), keep)
    tolerance = TOLERANCE if params["steps"] <= 4 else MANY_STEPS
    # A strength of 0 asks for both conditions here; the reference leaves the one out that it does not use.
    calls = [exact("calls", asked.calls == one["model_t_and_calls"])] if params.get("guidance_strength") != 0 else []
    values = [compare(key, found[key], wanted, tolerance) for key, wanted in part(tensors, f"{name}.").items()]
    return [exact("t_seq", grid == one["t_seq"]), *calls, *values]


def run_guidance(path: Path, sigma_min: float, name: str, one: Record) -> list[Check]:
    """One guided prediction with the model's outputs given, by both definitions of the spread."""
    tensors, checks = tensors_of(path), []
    for kind in ("dense", "sparse"):
        own = part(tensors, f"{kind}.")
        x, layout, path_ = own["x_t"], layout_of(own["x_t"], own.get("coords")), Interpolant(sigma_min)
        t_B = torch.full((layout.batch_size,), one["t"], dtype=torch.float64)
        guidance, v = _guidance(one), own["pos"]
        if not guidance.idle(t_B):
            guided = guidance.guided(own["pos"], own["neg"], t_B, layout)
            v = guidance.rescaled(guided, own["pos"], x, t_B, layout, path_)
        for key, ours in (("pred", v), ("pred_x_0", path_.x0(x, v, t_B, layout))):
            checks.append(compare(f"{kind}.{key}", ours, own[f"{name}.{key}"], TOLERANCE))
    return checks


def run_derivatives(path: Path, record: Record, run: Run) -> list[Check]:
    """Forward mode along each direction, and gradients by input and parameter."""
    tensors, checks = tensors_of(path), []
    t, x_dot, t_dot = (tensors[key] for key in ("t", "x_dot", "t_dot"))
    for name, tangents in {
        "jvp": (x_dot, t_dot),
        "jvp_x_only": (x_dot, torch.zeros_like(t_dot)),
        "jvp_t_only": (torch.zeros_like(x_dot), t_dot),
    }.items():
        out, ours = torch.func.jvp(lambda x, t: run(t, x), (run.x, t), tangents)
        checks += [compare(name, ours, tensors[name], TOLERANCE), compare("out", out, tensors["out"], TOLERANCE)]
    x, t = run.x.clone().requires_grad_(), t.clone().requires_grad_()
    run.model.zero_grad()
    (run(t, x) * tensors["cotangent"]).sum().backward()
    own = {name: parameter.grad for name, parameter in run.model.named_parameters()}
    for name, wanted in part(tensors, "grad.").items():
        checks.append(compare(f"grad.{name}", cast(Tensor, own[name]), wanted, TOLERANCE))
    for name, norm in record["grad_norms"].items():
        checks.append(compare(f"grad norm.{name}", cast(Tensor, own[name]).norm(), norm, TOLERANCE))
    for name, leaf in (("x", x), ("t", t)):
        checks.append(compare(f"grad_input.{name}", cast(Tensor, leaf.grad), tensors[f"grad_input.{name}"], TOLERANCE))
    return checks


def run_training(path: Path, sigma_min: float, name: str, one: Record, run: Run) -> list[Check]:
    """The flow-matching loss at recorded draws: x_t, target, prediction, loss, gradients."""
    tensors = tensors_of(path)
    own, x0, line = part(tensors, f"{name}."), tensors["x_0"], Interpolant(sigma_min)
    run = Run(run.model, {"x": x0, **tensors})
    layout = run.layout
    x_t, target = line.interpolate(x0, own["noise"], own["t"] / 1000, layout), line.velocity(x0, own["noise"])
    cond = Condition(tensors["cond"]).dropped(torch.tensor(one["dropped"]))
    run.model.zero_grad()
    pred = run(own["t"], x_t, cond.tokens)
    loss = (pred - target).square().mean()
    loss.backward()
    ours = {"x_t": x_t, "target": target, "pred": pred, "cond": cast(Tensor, cond.tokens)}
    checks = [compare(key, value, own[key], TOLERANCE) for key, value in ours.items()]
    gradients = {key: parameter.grad for key, parameter in run.model.named_parameters()}
    for key, wanted in part(own, "grad.").items():
        checks.append(compare(f"grad.{key}", cast(Tensor, gradients[key]), wanted, TOLERANCE))
    return [*checks, compare("loss", loss, one["terms"]["loss"], TOLERANCE)]


def _referred(root: Path, record: Record) -> Record | None:
    path = root / f"{record['model']}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if of_trellis2(found) else None


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The cases of a record, if it is one of TRELLIS.2's flows."""
    if of_trellis2(record):
        return [Case(label(root, path), partial(run_model, path, record))]
    if isinstance(record.get("built_with"), dict) and "tensors" in record:  # of a flow
        return [Case(label(root, path), partial(run_state_dict, path.stem, record))]
    found: Any = record.get("cases")
    rows: dict[str, Record] = found if isinstance(found, dict) else {}
    first = next(iter(rows.values()), {})
    work: Callable[[str, Record], list[Check]]
    if "rope_freq" in first:
        work = partial(run_rotary, path)
    elif "model_calls" in first:
        work = partial(run_guidance, path, record["sigma_min"])
    elif isinstance(record.get("model"), str) and (model := _referred(root, record)) is not None:
        load = lru_cache(maxsize=1)(partial(_load, root / f"{record['model']}.json", model))
        if "grad_norms" in record:
            return [Case(label(root, path), lambda: run_derivatives(path, record, load()))]
        kind = run_training if "trainer" in record else run_sampler

        def work(name: str, one: Record) -> list[Check]:
            return kind(path, record["sigma_min"], name, one, load())

    else:
        return []
    return [Case(label(root, path, name), partial(work, name, one)) for name, one in rows.items()]


def _load(path: Path, record: Record) -> Run:
    tensors = tensors_of(path)
    return Run(build(record, tensors), part(tensors, "input."))
