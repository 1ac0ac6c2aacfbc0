"""The config of a sum of methods, ``--method cm+dmd2``. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic import Field, create_model

from fewstep.config.base import Strict
from fewstep.plugins.registry import Entry


def config_of(parts: Sequence[Entry]) -> type[Strict]:
    """A table for each part under its name, and the tables ``weights`` and ``starts`` with a key for each."""
    return _config_of(tuple(parts))


@lru_cache(maxsize=32)  # one class per sum, so that configs of a sum with equal values are equal
def _config_of(parts: tuple[Entry, ...]) -> type[Strict]:
    tables: dict[str, Any] = {}
    for part in parts:
        config = part.load_config()
        tables[part.name] = (config, Field(default_factory=config))
    numbers = {
        "weights": (1.0, "factor of its loss terms"),
        "starts": (0.0, "when it begins: after a share of the run (below 1) or a number of iterations (1 or more)"),
    }
    for name, (default, text) in numbers.items():
        keys: dict[str, Any] = {
            part.name: (float, Field(default, ge=0, description=f"{part.name}: {text}")) for part in parts
        }
        model = create_model(name.title(), __base__=Strict, **keys)
        tables[name] = (model, Field(default_factory=model))
    return create_model("+".join(part.name for part in parts), __base__=Strict, **tables)
