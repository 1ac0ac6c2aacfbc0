"""The keys of one call of ``fewstep teach``: its own and the engine's, checked together before anything starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import create_model

from fewstep.cli.distill import show_config
from fewstep.config.base import Strict, describe, flatten, merge, parse_override, validate
from fewstep.config.describe import toml
from fewstep.config.resolve import pick
from fewstep.config.run import TABLES, Resolved, model_of
from fewstep.console import Console, listing
from fewstep.files import write_json
from fewstep.texts import read_json
from fewstep_trellis.teach.config import TeachConfig
from fewstep_trellis.teach.flows import METHOD, SLAT_FLOW, STRUCTURE_FLOW, FlowRun

ENGINE = ("seed", *TABLES)
RECORD = "teach.json"  # the keys that --resume goes on with, by the backbone whose models are taught


@dataclass(frozen=True)
class Keys:
    """The keys that were given, nested; ``config`` and ``flow`` are made from them.

    Args:
        structure: whether the first stage's models are taught, or the second's.
    """

    structure: bool
    given: Mapping[str, Any]

    @classmethod
    def read(cls, structure: bool, overrides: Sequence[str], out: Path, resume: bool) -> Keys:
        """KEY=VALUE texts, on top of those that an interrupted run was started with.

        Raises:
            FewstepError: for an unknown key, with the nearest, or a value out of bounds.
        """
        given = merge(*(parse_override(text) for text in overrides))
        if resume:
            given = merge(_recorded(out).get(_flow(structure).backbone, {}), given)
        validate(_model(structure), given)
        return cls(structure, given)

    @property
    def config(self) -> TeachConfig:
        """The keys of ``teach`` itself."""
        return validate(TeachConfig, {key: value for key, value in self.given.items() if key not in ENGINE})

    @property
    def engine(self) -> dict[str, Any]:
        """The keys of the run that trains the flow."""
        return {key: value for key, value in self.given.items() if key in ENGINE}

    def flow(self, out: Path, device: torch.device) -> Resolved:
        """The config of the run that trains the flow. Raises FewstepError."""
        return _flow(self.structure).resolve(out, self.config.root, device, self.engine)

    def record(self, out: Path) -> None:
        """Keep them for ``--resume``."""
        own = json.loads(json.dumps(self.given, default=str))
        write_json(out / RECORD, {**_recorded(out), _flow(self.structure).backbone: own})

    def show(self, out: Path, device: torch.device, console: Console) -> None:
        """Print the config of all stages, with what was given."""
        given = {key for key, _ in flatten(self.given)}
        table = listing("key", "value", "from", title="fewstep teach (nothing was started)")
        for key, value in flatten(self.config.model_dump(mode="json")):
            table.add_row(key, toml(value), "command line" if key in given else "default")
        console.print(table)
        show_config(console, self.flow(out, device), "flow")


def show_keys(structure: bool, console: Console) -> None:
    """Every key with what it accepts, its default and its meaning."""
    table = listing("key", "accepted", "default", "meaning", title="keys of fewstep teach")
    for row in describe(_model(structure)):
        table.add_row(*row)
    console.print(table)


def _flow(structure: bool) -> FlowRun:
    return STRUCTURE_FLOW if structure else SLAT_FLOW


def _model(structure: bool) -> type[Strict]:
    engine = model_of(*pick(METHOD, _flow(structure).backbone))
    return create_model("Teach", __base__=(TeachConfig, engine))


def _recorded(out: Path) -> dict[str, Any]:
    return dict(read_json(out / RECORD)) if (out / RECORD).is_file() else {}
