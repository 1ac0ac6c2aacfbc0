"""Configs: frozen pydantic models, assembled per run, with errors that name the key and the nearest spelling.

Later values win, in this order: defaults, preset, ``--config`` file, ``KEY=VALUE``. Nothing here imports torch.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from fewstep.config.describe import Row, describe, explain
from fewstep.errors import FewstepError
from fewstep.texts import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

__all__ = ["Row", "Strict", "describe", "flatten", "merge", "parse_override", "read_toml", "several", "validate"]

M = TypeVar("M", bound=BaseModel)
EXAMPLE = "for example train.steps=400"


class Strict(BaseModel):
    """Base class of every config: frozen, and an unknown key is an error.

    ``none`` stands for None where a key takes it, since TOML has no null; true and false are not numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _toml(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {annotation, *get_args(annotation)}
        if value == "none" and NoneType in kinds:
            return None
        many = isinstance(value, list | tuple)
        kinds = _types(annotation) if many else kinds
        has_bool = any(isinstance(item, bool) for item in (value if many else [value]))
        if has_bool and kinds & {int, float} and bool not in kinds:
            raise PydanticCustomError("no_number", "true and false are not numbers")
        return value


def _types(annotation: Any) -> set[Any]:
    """The types in an annotation, those of list elements included."""
    if hasattr(annotation, "__metadata__"):
        return _types(annotation.__origin__)
    return {annotation}.union(*map(_types, get_args(annotation)))


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=VALUE`` in TOML syntax to {"a": {"b": value}}; a bare word is a string.

    Raises:
        FewstepError: for a missing ``=`` or value, a key that TOML does not take, or a list, table or quoted string
            that does not parse.
    """
    key, sep, value = (part.strip() for part in text.partition("="))
    if not sep or not key or "\n" in text:
        several = "; the numbers of a list are joined by commas: 1,2" if text.strip().isdigit() else ""
        raise FewstepError(f"override {text!r}: accepted is KEY=VALUE, {EXAMPLE}{several}")
    if not value:
        raise FewstepError(f'override {text!r}: no value after the =; accepted is KEY=VALUE, {key}="" for empty text')
    try:
        path = _path(tomllib.loads(f"{key} = 0"))
    except tomllib.TOMLDecodeError:
        raise FewstepError(f"override {text!r}: {key!r} is not a dotted key, {EXAMPLE}") from None
    nested: Any = _value(text, value)
    for part in reversed(path):
        nested = {part: nested}
    return dict(nested)


def _path(nested: Any) -> list[str]:
    path = []
    while isinstance(nested, dict):
        ((part, nested),) = nested.items()
        path.append(part)
    return path


def _value(text: str, value: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if value[0] in "[{\"'":
            raise FewstepError(f"override {text!r}: the value is not valid TOML: {error}") from None
        return value
    return value if isinstance(parsed, datetime.date | datetime.time) else parsed


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a nested dict.

    Raises:
        FewstepError: for a missing file or a syntax error, with its line.
    """
    try:
        values: dict[str, Any] = tomllib.loads(read_text(path))
    except FewstepError as error:
        raise FewstepError(f"config {error}; accepted: a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise FewstepError(f"config {str(path)!r} is not valid TOML: {error}") from None
    return values


def several(given: Any) -> list[Any]:
    """The items of what was given, as a list; a single text, path, number or other object gives a list of one."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts merged, later values winning; two tables are merged key by key."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = out.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            out[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return out


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def validate(model: type[M], values: Mapping[str, Any]) -> M:
    """An instance of ``model``.

    Raises:
        FewstepError: naming every problem, one line per key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise FewstepError(explain(model, values, error)) from None
