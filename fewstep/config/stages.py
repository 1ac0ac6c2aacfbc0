"""Models of several networks run one after another: which of them ``--stage`` names, and which config keys each gets.

A backbone lists the stages of its model in ``Backbone.stages``. Config keys apply to every stage that runs; below a
stage's name (``slat.train.steps``) they apply to that stage alone, and win.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fewstep.config import presets
from fewstep.config.base import merge
from fewstep.errors import FewstepError, invalid, unknown
from fewstep.plugins.registry import Entry, registry

BOTH = "both"


def chosen(backbone: Entry, stage: str | None) -> dict[str, Entry]:
    """The backbones to run on by stage, in order: the named one, or those of ``stage`` ("both": all of its model).

    Raises:
        FewstepError: for a stage that the model does not have, or a backbone without stages.
    """
    network = backbone.load()
    if stage is None:
        return {network.stage: backbone}
    if not network.stages:
        raise FewstepError(f"--stage: got {stage!r}; backbone {backbone.name!r} has no stages: leave --stage out")
    if stage != BOTH and stage not in network.stages:
        raise unknown("--stage", stage, (*network.stages, BOTH))
    wanted = network.stages if stage == BOTH else (stage,)
    return {name: registry().get("backbone", network.stages[name]) for name in wanted}


def keys_of(values: Mapping[str, Any], stage: str, stages: Iterable[str]) -> dict[str, Any]:
    """The values for one stage: those for all stages, overridden by those below its own name.

    Raises:
        FewstepError: for a stage's name with a plain value instead of a table.
    """
    names = set(stages)
    for name in names & values.keys():
        if not isinstance(values[name], Mapping):
            raise invalid(name, values[name], f"keys below it, for example {name}.train.steps=400")
    return merge({key: value for key, value in values.items() if key not in names}, values.get(stage, {}))


def check_named(values: Mapping[str, Any], running: Iterable[str], stages: Iterable[str]) -> None:
    """Refuse keys of a stage that does not run, which would silently have no effect.

    Raises:
        FewstepError: naming the stage.
    """
    idle = sorted(set(stages) & values.keys() - set(running))
    if idle:
        runs = ", ".join(running)
        raise FewstepError(
            f"unknown key {idle[0]!r}: that stage does not run; accepted: --stage both, or keys of {runs}"
        )


def preset_of(method: Entry, backbone: Entry, name: str | None) -> str | None:
    """The preset for this stage if one is shipped, else ``name``.

    For the stage ``slat``, ``mdt-dist`` stands for ``mdt-dist/slat``; without a name, the preset ``slat`` is preferred
    to the default of all stages.
    """
    stage = backbone.load().stage
    own = f"{name}/{stage}" if name is not None else stage
    return own if own in presets.available(method, backbone) else name
