"""Cases of whole models: outputs, intermediate values, half precision, and official state dicts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from fewstep_trellis.checkpoint import build_model
from fewstep_trellis.configs import official_config
from fewstep_trellis.models import MODELS
from fewstep_trellis.weights import fit
from fewstep_trellis2.vae import AUTOENCODERS
from torch import nn

from golden.cases import Case, Check, Record, compare, exact, label, of_trellis2, part, tensors_of
from golden.runners import RUNNERS, Tensors

TOLERANCE = 1e-5
HALF_TOLERANCE = 5e-3
HALF = "_fp16_torso"


def build(record: Record, state: Tensors, source: str, **changes: Any) -> nn.Module:
    """A model of a record's class and arguments with the given weights."""
    name = record.get("class") or record["model"]
    model = build_model(name, record["args"] | changes, "meta")
    fit(model, state, source)
    return model.eval()


def _watch(model: nn.Module, names: list[str], into: Tensors) -> None:
    modules = dict(model.named_modules())
    for name in names:
        if name in modules:
            modules[name].register_forward_hook(lambda _m, _i, out, name=name: into.setdefault(name, out))


def _checks(ours: Tensors, theirs: Tensors, what: str, tolerance: float) -> list[Check]:
    checks = []
    for name, expected in theirs.items():
        if name not in ours:
            checks.append(exact(f"{what}.{name} (we do not make it)", False))
        elif expected.is_floating_point():
            checks.append(compare(f"{what}.{name}", ours[name], expected, tolerance))
        else:
            checks.append(exact(f"{what}.{name}", torch.equal(ours[name].long(), expected.long())))
    return checks


@torch.no_grad()
def run_model(path: Path, record: Record) -> list[Check]:
    """Outputs, intermediate values, and the outputs of the half-precision model, where recorded."""
    tensors, run = tensors_of(path), RUNNERS[MODELS[record["class"]].__name__]
    state, given, expected = (part(tensors, p) for p in ("state.", "input.", "output."))
    half = {k.removesuffix(HALF): v for k, v in expected.items() if k.endswith(HALF)}
    full = {k: v for k, v in expected.items() if not k.endswith(HALF)}
    mids, seen = part(tensors, "mid."), cast(Tensors, {})

    model = build(record, state, str(path))
    # Called before the hooks are set only once: the encoder's second call must not overwrite the first's values.
    _watch(model, list(mids), seen)
    ours = run(model, given)
    checks = _checks(ours, full, "output", TOLERANCE) + _checks(ours | seen, mids, "mid", TOLERANCE)
    if half:
        model = build(record, state, str(path), use_fp16=True)
        checks += _checks(run(model, given), half, "half", HALF_TOLERANCE)
    return checks


def run_state_dict(record: Record, name: str) -> list[Check]:
    """Keys, shapes, types and order of an official configuration."""
    model = build_model(*official_config(name), "meta")
    parameters = {key for key, _ in model.named_parameters()}
    ours = [
        [key, list(v.shape), re.sub("^torch.", "", str(v.dtype)), "param" if key in parameters else "buffer"]
        for key, v in model.state_dict().items()
    ]
    return [exact("state dict", ours == record["tensors"])]


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The cases of a record, if it is one of a model or of a state dict."""
    name = label(root, path)
    if of_trellis2(record) or "built_with" in record or record.get("class") in AUTOENCODERS:
        return []
    if {"config", "tensors"} <= record.keys():
        return [Case(name, lambda: run_state_dict(record, path.stem))]
    if not {"class", "args", "outputs"} <= record.keys():
        return []
    if record["class"] not in MODELS:
        return [Case(name, missing=f"class {record['class']}")]
    return [Case(name, lambda: run_model(path, record))]
