"""The official file pair of a model: ``<name>.json`` (class and arguments) and ``<name>.safetensors``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.errors import FewstepError, invalid, unknown
from fewstep.files import new_file, write_json
from fewstep.texts import read_json
from fewstep_trellis.models import MODELS, Rebuildable
from fewstep_trellis.weightfiles import check_file, read_tensors, split_key, stem_of, tensor_file
from fewstep_trellis.weights import fit


def _tensors(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    def cast(x: Tensor) -> Tensor:
        return x.detach().to("cpu", dtype if x.is_floating_point() else None).contiguous()

    return {k: cast(v) for k, v in model.state_dict().items()}


def save_model(model: nn.Module, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
    """Write a model as the official pair of files.

    Args:
        model: of a class with an official name; its ``args`` go into the json file.
        path: without suffix, or ending in ``.safetensors`` or ``.json``. Missing folders are made.
        dtype: type of the stored floating-point tensors; by default each as it is.

    Returns:
        The path of the ``.safetensors`` file.

    Raises:
        FewstepError: a model of another class, or a place that cannot be written.
    """
    if not isinstance(model, Rebuildable):
        raise unknown("model class", type(model).__name__, MODELS)
    stem = stem_of(Path(path))
    target, config = Path(stem + ".safetensors"), Path(stem + ".json")
    with new_file(target) as temp:
        save_file(_tensors(model, dtype), temp, metadata={"format": "pt"})
    write_json(config, {"name": model.official_name, "args": model.args})
    return target


def read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Class name and constructor arguments of a model's json file. Raises FewstepError for any other file."""
    check_file(path)
    wanted = 'a json file with "name" (class) and "args" (its constructor\'s arguments)'
    try:
        config = read_json(path)
    except FewstepError as error:
        raise invalid("checkpoint", str(path), f"{wanted}; it is not json ({error})") from error
    if not isinstance(config, dict):
        raise invalid("checkpoint", str(path), wanted)
    name, args = config.get("name"), config.get("args")
    if not isinstance(name, str) or not isinstance(args, dict):
        raise invalid("checkpoint", str(path), wanted)
    return name, args


def build_model(
    name: str, args: Mapping[str, Any], device: str | None = None, models: Mapping[str, type[Rebuildable]] = MODELS
) -> Rebuildable:
    """Build a model from its official class name and arguments.

    Args:
        name: a key of ``models``; saving the model writes it again.
        args: arguments of its constructor.
        device: where its tensors are made, for example ``"meta"``; by default the current device.
        models: classes by official name; those of another project may have the same names.

    Raises:
        FewstepError: an unknown class or argument (with the nearest valid name), a missing or an unusable one.
    """
    if name not in models:
        raise unknown("model class", name, models)
    parameters = inspect.signature(models[name]).parameters
    for key in args:
        if key not in parameters:
            raise unknown(f"argument of {name}", key, parameters)
    required = [k for k, p in parameters.items() if p.default is p.empty and k not in args]
    if required:
        raise FewstepError(f"{name}: arguments are missing: {', '.join(required)}")
    try:
        with torch.device(device or torch.get_default_device()):
            model = models[name](**args)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, AttributeError) as error:
        raise FewstepError(f"{name}: cannot be built from {dict(args)}: {error}") from error
    if name != type(model).__name__:
        model.alias = name
    return model


def load_model(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    models: Mapping[str, type[Rebuildable]] = MODELS,
) -> nn.Module:
    """Read a model from the official pair of files.

    Half-precision tensors are cast to the types of the module: float32, unless its arguments say ``use_fp16``.

    Args:
        path: the common stem, or one of the two files; the weights may be any that ``read_tensors`` takes, and
            ``FILE:KEY`` names those of several in a file.
        device: where the model shall be.
        models: as of ``build_model``.

    Returns:
        The model, in training mode as any new module, with its arguments in ``args``.

    Raises:
        FewstepError: a missing, empty, truncated or foreign file; an unknown class or argument; tensors that do not
            fit (all of them in one message).
    """
    place, key = split_key(Path(path))
    config, tensors = Path(stem_of(place) + ".json"), tensor_file(place)
    name, args = read_config(config)
    try:
        model = build_model(name, args, "meta", models)
    except FewstepError as error:
        raise FewstepError(f"{config}: {error}") from error
    fit(model, read_tensors(tensors, key), str(tensors))
    return model.to(device)
