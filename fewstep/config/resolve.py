"""From names and settings to the configs of runs: defaults, preset, file, overrides and tables, merged and checked.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.config import presets
from fewstep.config.base import flatten, merge, parse_override, read_toml, validate
from fewstep.config.recorded import Plan, Plans, Words, is_run, merged_values, read_plans
from fewstep.config.run import TABLES, Resolved, model_of, source_of
from fewstep.config.stages import check_named, chosen, keys_of, preset_of
from fewstep.config.teacher import SOURCE, check_unused, taught
from fewstep.errors import FewstepError, invalid
from fewstep.plugins.registry import Entry, registry

Layers = Sequence[str | Path | Mapping[str, Any]]  # KEY=VALUE, a TOML file, or nested tables
Layer = tuple[str, dict[str, Any]]  # (source, nested values)
OVERRIDES, PYTHON = "command line", "Python"  # sources of a run's keys


def pick(method: str, backbone: str, dataset: str | None = None) -> tuple[Entry, Entry, Entry]:
    """The registered method, backbone and data set (the backbone's own unless named).

    Raises:
        FewstepError: for a name that is not registered, with the nearest.
    """
    objective, network = registry().get("objective", method), registry().get("backbone", backbone)
    return objective, network, data_of(network, dataset)


def data_of(backbone: Entry, dataset: str | None = None) -> Entry:
    """The data set: the one that was named, or the backbone's own.

    Raises:
        FewstepError: for a name that is not registered, or a backbone without a data set of its own.
    """
    name = dataset or getattr(backbone.load(), "dataset", None)
    if name is None:
        raise FewstepError(f"backbone {backbone.name!r} names no data set of its own; accepted: --dataset with one")
    return registry().get("dataset", name)


def resolve_stages(
    method: str,
    backbone: str,
    stage: str | None = None,
    preset: str | None = None,
    layers: Layers = (),
    dataset: str | None = None,
    plans: Plans | None = None,
) -> dict[str, Resolved]:
    """The config of each stage's run, in order; without ``stage`` one run, on ``backbone`` itself.

    Later values win, in this order: defaults, preset, ``layers``.

    Args:
        stage: a stage of the backbone's model, or "both".
        layers: each is ``"train.steps=400"``, the ``Path`` of a TOML file or of a run, or nested tables.
        plans: of a run that is resumed, by stage; they replace the preset.

    Raises:
        FewstepError: for unknown names and keys and for values out of bounds, with their source.
    """
    named = registry().get("backbone", backbone)
    running, stages = chosen(named, stage), named.load().stages
    given = [_layer(layer) for layer in layers]
    for source, values in given:
        if source in (OVERRIDES, PYTHON):
            check_named(values, running, stages)
    recorded = plans or {}
    return {
        name: _resolve(method, network.name, preset, given, dataset, recorded.get(name, recorded.get("")))
        for name, network in running.items()
    }


def resolve_run(words: Words, layers: Layers = (), resume: Path | None = None) -> dict[str, Resolved]:
    """``resolve_stages`` for names that may be missing if a recorded run has them: the one that is resumed, or one
    among the layers.

    Args:
        resume: the folder of the run to continue. Its config replaces the preset.

    Raises:
        FewstepError: as ``resolve_stages``, for a missing name, and for one that contradicts the resumed run.
    """
    plans = None
    if resume is not None:
        try:
            plans = read_plans(resume)
        except FewstepError:
            if words.method is None or words.backbone is None:
                raise
    if plans is not None and resume is not None:
        words.check(resume, plans)
    runs = [layer for layer in layers if isinstance(layer, Path) and is_run(layer)]
    for known in [plans] if plans else [read_plans(run) for run in runs]:
        words = words.completed(known)
    for option, kind, name in (("--method", "objective", words.method), ("--backbone", "backbone", words.backbone)):
        if name is None:
            names = ", ".join(registry().names(kind)) or "nothing is registered"
            raise FewstepError(f"{option}: missing; accepted: {names}")
    return resolve_stages(
        str(words.method), str(words.backbone), words.stage, words.preset, layers, words.dataset, plans
    )


def _layer(layer: str | Path | Mapping[str, Any]) -> Layer:
    if isinstance(layer, str):
        return OVERRIDES, parse_override(layer)
    if isinstance(layer, Path):
        return str(layer), merged_values(read_plans(layer)) if is_run(layer) else read_toml(layer)
    if isinstance(layer, Mapping):
        return PYTHON, dict(layer)
    raise invalid("config", layer, "a TOML file's path, or nested tables")


def _resolve(
    method: str, backbone: str, preset: str | None, given: Sequence[Layer], dataset: str | None, plan: Plan | None
) -> Resolved:
    objective, network = registry().get("objective", method), registry().get("backbone", backbone)
    backbone_cls = network.load()
    if plan is not None:
        preset, base = plan.preset, [("the run", plan.values)]
    else:
        preset = preset_of(objective, network, preset)
        base = [(file.source, file.read()) for file in presets.find(objective, network, preset)]
    layers = base + list(given)
    layers = [(source, keys_of(values, backbone_cls.stage, backbone_cls.stages)) for source, values in layers]
    if plan is None and not objective.load().teaches:
        typed = (OVERRIDES, PYTHON)
        written = [values for source, values in layers[len(base) :] if source in typed or not is_run(Path(source))]
        if made := taught(network, [values for _, values in layers], written):
            layers.append((SOURCE, made))
    data = data_of(network, dataset or presets.data_set(layers))
    names = {"method": objective.name, "backbone": network.name, "dataset": data.name}
    check_needs(objective.load(), backbone_cls, data.load(), **names)
    layers = [(source, {k: v for k, v in values.items() if k != presets.DATASET}) for source, values in layers]
    sources = {} if plan is None else dict(plan.sources)
    for source, values in layers if plan is None else layers[1:]:
        sources.update({key: source for key, _ in flatten(values)})
    merged = merge({table: {} for table in TABLES}, *(values for _, values in layers))
    try:
        config = validate(model_of(objective, network, data), merged)
        if plan is None:
            check_unused(objective, network, config.backbone)
    except FewstepError as error:
        raise FewstepError("\n".join(_located(line, sources) for line in str(error).splitlines())) from None
    method_of_run = objective.load()(config.objective)
    check_needs(method_of_run, backbone_cls, data.load(), **names)  # the needs of an objective may depend on its config
    check_sampler(method_of_run, objective.name)
    method_of_run.check(config.train)
    return Resolved(objective, network, data, config, sources, preset)


def _located(line: str, sources: dict[str, str]) -> str:
    """An error's line, with the source of the key that it is about if that is a preset or a file."""
    key = line.removeprefix("unknown key ").partition(":")[0].strip("'")
    source = source_of(sources, key)
    return line if source in ("default", OVERRIDES, PYTHON) else f"{line} (from {source})"


def check_needs(
    objective_cls: Any,
    backbone_cls: Any,
    dataset_cls: Any = None,
    *,
    method: str = "",
    backbone: str = "",
    dataset: str = "",
) -> None:
    """Compare ``Objective.needs`` with what backbone and data set provide. Finite differences replace a missing "jvp".

    Args:
        method, backbone, dataset: the registered names for the message; by default the names of the classes.

    Raises:
        FewstepError: naming all sides and what is missing.
    """
    in_data = frozenset() if dataset_cls is None else dataset_cls.provides
    missing = sorted(set(objective_cls.needs) - set(backbone_cls.provides) - set(in_data) - {"jvp"})
    if missing:
        data = "" if dataset_cls is None else f", nor does data set {(dataset or dataset_cls.__name__)!r}"
        raise FewstepError(
            f"method {(method or objective_cls.__name__)!r} needs {', '.join(map(repr, missing))}, which backbone "
            f"{(backbone or backbone_cls.__name__)!r} does not provide: it provides {_listed(backbone_cls.provides)}"
            f"{data and f'{data}: it provides {_listed(in_data)}'}; the method needs {_listed(objective_cls.needs)}"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def check_sampler(objective: Any, method: str) -> None:
    """Refuse a contract whose sampler is not registered, or asks for another kind of student than the one trained.

    Raises:
        FewstepError: naming the samplers that fit.
    """
    contract, wanted = objective.contract(), "two_time" in objective.needs
    entry = registry().get("sampler", contract.sampler)
    if contract.load_sampler().two_time == wanted:
        return
    why, fitting = "needs 'two_time', and its sampler {!r} never passes the target time s_B", "'jump', 'gamma'"
    if not wanted:
        why, fitting = "does not need 'two_time', and its sampler {!r} passes a target time", "'euler', 'consistency'"
    raise FewstepError(f"method {method!r} {why.format(entry.name)}; accepted: {fitting}, or another that fits")
