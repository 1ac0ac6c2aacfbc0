"""What an earlier run was started with, from its ``config.json``: for ``--resume``, and for ``--config RUN``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.config import presets
from fewstep.config.stages import BOTH, chosen, preset_of
from fewstep.errors import FewstepError, invalid
from fewstep.plugins.registry import registry
from fewstep.texts import read_json

CONFIG = "config.json"
WRITTEN = "a folder that `fewstep distill` or `fewstep teach` wrote"


@dataclass(frozen=True)
class Plan:
    """One recorded stage of a run: registered names, the values of all keys, and the source of each."""

    method: str
    backbone: str
    dataset: str
    preset: str | None
    config: dict[str, Any]
    sources: dict[str, str]

    @property
    def values(self) -> dict[str, Any]:
        """All keys as a config file has them."""
        return {presets.DATASET: self.dataset, **self.config}


Plans = dict[str, Plan]  # by stage; "" for a run of one stage


def is_run(path: Path) -> bool:
    """Whether ``--config`` names a run and not a TOML file."""
    return path.is_dir() or path.suffix == ".json"


def read_plans(path: Path) -> Plans:
    """The plans of a run, from its folder, from a folder with a run of each stage, or from a ``config.json``.

    Raises:
        FewstepError: for a folder without a run, or a file that is not of a run.
    """
    if not path.exists():
        raise FewstepError(f"there is no run {str(path)!r}; accepted: {WRITTEN}")
    file = path
    if path.is_dir():
        inner = sorted(path.glob(f"*/{CONFIG}"))
        file = path / CONFIG if (path / CONFIG).is_file() or not inner else inner[0]
    if not file.is_file():
        accepted = f"{WRITTEN}, or for --config a TOML file"
        raise FewstepError(f"{str(path)!r} is not the folder of a run (it has no {CONFIG}); accepted: {accepted}")
    record = read_json(file)
    try:
        stages = {"": record} if file.parent == path or file == path else record["stages"]
        return {name: _plan(stage) for name, stage in stages.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FewstepError(f"{str(file)!r} is not the {CONFIG} of a run; accepted: that of {WRITTEN}") from None


def _plan(record: Mapping[str, Any]) -> Plan:
    return Plan(
        method=str(record["method"]),
        backbone=str(record["backbone"]),
        dataset=str(record["dataset"]),
        preset=record.get("preset"),
        config=dict(record["config"]),
        sources=dict(record.get("sources", {})),
    )


def merged_values(plans: Plans) -> dict[str, Any]:
    """The values as one config file for all stages: with several stages, below the stages' names."""
    return plans[""].values if "" in plans else {name: plan.values for name, plan in plans.items()}


@dataclass(frozen=True)
class Words:
    """The names by which a user asks for a run; None where not given."""

    method: str | None = None
    backbone: str | None = None
    stage: str | None = None
    dataset: str | None = None
    preset: str | None = None

    def completed(self, plans: Plans) -> Words:
        """These names, with those of a recorded run where none was given."""
        first = next(iter(plans.values()))
        stage = self.stage or (BOTH if len(plans) > 1 else None)
        return Words(self.method or first.method, self.backbone or first.backbone, stage, self.dataset, self.preset)

    def check(self, folder: Path, plans: Plans) -> None:
        """Refuse to resume a run under other names.

        Raises:
            FewstepError: naming the option, what the run has, and what was given.
        """
        first, words = next(iter(plans.values())), self.completed(plans)
        networks = chosen(registry().get("backbone", str(words.backbone)), words.stage)
        runs, asked = [plan.backbone for plan in plans.values()], [entry.name for entry in networks.values()]
        method = registry().get("objective", str(words.method))
        if method.name != first.method:
            raise _contradicts(folder, "--method", self.method, first.method)
        if runs != asked and len(asked) > 1:
            names = ", ".join(networks)
            raise FewstepError(f"{str(folder)!r} does not hold runs of stages {names}; accepted: another --out")
        if runs != asked and self.backbone not in (None, runs[0]):
            raise _contradicts(folder, "--backbone", self.backbone, runs[0])
        if runs != asked:
            stage = BOTH if len(runs) > 1 else registry().get("backbone", runs[0]).load().stage
            raise _contradicts(folder, "--stage", self.stage, stage or None)
        for network, plan in zip(networks.values(), plans.values(), strict=True):
            if self.dataset is not None and registry().get("dataset", self.dataset).name != plan.dataset:
                raise _contradicts(folder, "--dataset", self.dataset, plan.dataset)
            if self.preset is not None and preset_of(method, network, self.preset) != plan.preset:
                raise _contradicts(folder, "--preset", self.preset, plan.preset)


def _contradicts(folder: Path, option: str, got: str | None, has: str | None) -> FewstepError:
    accepted = f"{has}, or leave it out" if has is not None else "to leave it out: the run has none"
    return invalid(f"--resume {folder}: {option}", got, accepted)
