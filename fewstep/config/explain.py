"""Why a config was refused: one line a key, with what was got, what is accepted and the nearest spelling."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fewstep.config.describe import accepted, describe, inner_model
from fewstep.errors import nearest


def explain(model: type[BaseModel], values: Mapping[str, Any], error: ValidationError) -> str:
    """Every problem on a line of its own, one line a key, however many branches of a union refused it."""
    lines: dict[str, str] = {}
    for item in error.errors():
        key, owner, info = _locate(model, item["loc"])
        if item["type"] == "extra_forbidden":
            lines.setdefault(".".join(map(str, item["loc"])), _unknown(model, owner, item))
        elif info is None or item["type"] in ("value_error", "assertion_error"):
            text = item["msg"].partition(", ")[2] or item["msg"]
            table = isinstance(item["input"], Mapping)  # keys that do not fit together, not one value
            got = "" if table else f"got {_show(item['input'])}; accepted: "
            lines.setdefault(key, f"{key}: {got}{text}" if key else text)
        else:
            lines.setdefault(key, _refused(key, info, values, item))
    return "\n".join(lines.values())


def _refused(key: str, info: FieldInfo, values: Mapping[str, Any], item: ErrorDetails) -> str:
    if item["type"] == "missing" and not isinstance(item["loc"][-1], int):
        return f"{key}: missing; accepted: {accepted(info.annotation, tuple(info.metadata))}"
    got = _dig(values, key)
    text = f"{key}: got {_show(got)}; accepted: {accepted(info.annotation, tuple(info.metadata))}"
    if item["type"] == "finite_number":
        text += ", finite"
    hint = nearest(got, [c for c in _choices(info.annotation) if isinstance(c, str)]) if isinstance(got, str) else None
    return text + (f"; did you mean {hint!r}?" if hint else "")


def _unknown(model: type[BaseModel], owner: type[BaseModel], item: ErrorDetails) -> str:
    *table, name = (str(part) for part in item["loc"])
    prefix, fields = "".join(f"{part}." for part in table), sorted(owner.model_fields)
    same = [row.key for row in describe(model) if row.key.rpartition(".")[2] == name]
    close = nearest(name, fields)
    hints = same or ([prefix + close] if close else _near_elsewhere(model, name))
    where = f"under {prefix[:-1]}" if prefix else "at the top"
    text = f"unknown key {prefix + name!r}: accepted {where} are {', '.join(fields)}"
    return text + (f"; did you mean {' or '.join(map(repr, hints[:3]))}?" if hints else "")


def _near_elsewhere(model: type[BaseModel], name: str) -> list[str]:
    keys = {row.key.rpartition(".")[2]: row.key for row in describe(model)}
    hint = nearest(name, keys)
    return [keys[hint]] if hint else []


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel], FieldInfo | None]:
    """The dotted key of a location, the class that owns it, and the field; a union's branch names are no keys."""
    key, owner, info, held = "", model, None, model
    for part in loc:
        if isinstance(part, str) and part in held.model_fields:
            owner, info = held, held.model_fields[part]
            key, held = f"{key}.{part}" if key else part, inner_model(info.annotation) or _Nothing
        elif isinstance(part, int) and held is not _Nothing:
            key = f"{key}.{part}"
    return key, held if held is not _Nothing else owner, info


class _Nothing(BaseModel):
    """Stands for "no table here"."""


def _choices(annotation: Any) -> tuple[Any, ...]:
    args = get_args(annotation)
    return args if get_origin(annotation) is Literal else tuple(c for arg in args for c in _choices(arg))


def _dig(values: Any, key: str) -> Any:
    for part in key.split("."):
        if isinstance(values, list | tuple):
            values = values[int(part)]
        else:
            values = values.get(part) if isinstance(values, Mapping) else getattr(values, part, None)
    return values


def _show(value: Any) -> str:
    return value if isinstance(value, str) and len(value) > 200 else _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
