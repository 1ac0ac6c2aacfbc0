"""Cases of samplers: the time grid, every recorded state and prediction, the samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fewstep_trellis.flow import Flow
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.core.times import step_grid
from fewstep.errors import FewstepError
from golden.cases import Case, Check, Record, compare, exact, label, of_trellis2, part, tensors_of
from golden.flows import flow, is_flow, layout_of

FEW_STEPS = 4
TOLERANCE_FEW, TOLERANCE_MANY = 1e-5, 1e-4
CLASSES = ("FlowEulerSampler", "FlowEulerCfgSampler", "FlowEulerGuidanceIntervalSampler")
PARAMS = {"steps", "rescale_t", "cfg_strength", "cfg_interval"}


def _guidance(record: Record) -> Guidance:
    params = record["params"]
    if record["neg_cond"] is None:
        return Guidance()
    low, high = params.get("cfg_interval", (0.0, 1.0))
    return Guidance.strength(params["cfg_strength"], (low, high))


def _condition(tensors: dict[str, Tensor], record: Record, batch: int) -> Condition:
    def tokens(name: str | None) -> Tensor | None:
        return None if name is None else tensors[name].expand(batch, -1, -1)

    return Condition(tokens(record["cond"]), tokens(record["neg_cond"]))


class _Trace:
    """Collects what the recording has for each step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def __call__(self, i: int, x: Tensor, data: Tensor) -> None:
        self.found[f"pred_x_t.{i}"], self.found[f"pred_x_0.{i}"] = x, data


def run_sampler(name: str, record: Record, tensors: dict[str, Tensor], backbone: Flow) -> list[Check]:
    """One sampler run from the recorded noise."""
    params, noise, trace = record["params"], tensors["noise"], _Trace()
    grid = step_grid(params["steps"], params.get("rescale_t", 1.0))
    # To the last bit: a guidance interval that ends on a grid time decides by it.
    checks = [exact("t_seq", grid == record["t_seq"])]
    layout = layout_of(noise, tensors.get("coords"))
    cond, step = _condition(tensors, record, layout.batch_size), Step(0, Interpolant(record["sigma_min"]))
    field = Teacher(backbone, _guidance(record))
    trace.found["samples"] = euler(field, noise, cond, layout, grid, step, trace)
    tolerance = TOLERANCE_FEW if params["steps"] <= FEW_STEPS else TOLERANCE_MANY
    expected = part(tensors, f"{name}.")
    return checks + [compare(k, trace.found[k], v, tolerance) for k, v in expected.items()]


def _load(root: Path, record: Record) -> Flow:
    path = root / f"{record['model']}.json"
    return flow(_model_record(root, record), part(tensors_of(path), "state."), str(path))


def _model_record(root: Path, record: Record) -> Record:
    path = root / f"{record['model']}.json"
    if not path.is_file():
        raise FewstepError(f"golden record {path}: a sampler record names it, and there is none here")
    found: Record = json.loads(path.read_text(encoding="utf-8"))
    return found


def _lacks(record: Record, model_class: str) -> str:
    """What of a case is not supported, or nothing."""
    if not is_flow(model_class):
        return f"class {model_class}"
    if record["class"] not in CLASSES:
        return f"class {record['class']}"
    unknown = record["params"].keys() - PARAMS
    return f"sampler parameter {', '.join(sorted(unknown))}" if unknown else ""


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The cases of a record, if it is one of sampler runs."""
    if not {"model", "cases"} <= record.keys():
        return []
    if of_trellis2(model := _model_record(root, record)):
        return []
    model_class = model["class"]
    if not is_flow(model_class):
        return [Case(label(root, path), missing=f"class {model_class}")]
    shared: dict[str, Any] = {}

    def run(name: str, one: Record) -> list[Check]:
        # The weights are read once for all runs of this record, and only when one of them is asked for.
        if not shared:
            shared.update(tensors=tensors_of(path), backbone=_load(root, record))
        return run_sampler(name, one, shared["tensors"], shared["backbone"])

    return [
        Case(label(root, path, name), missing=lack)
        if (lack := _lacks(one, model_class))
        else Case(label(root, path, name), lambda name=name, one=one: run(name, one))
        for name, one in record["cases"].items()
    ]
