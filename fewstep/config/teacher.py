"""The key ``backbone.teacher``: what a run that it names decides, and where it would have no effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.config.base import merge
from fewstep.config.recorded import CONFIG
from fewstep.errors import FewstepError, invalid
from fewstep.plugins.registry import Entry
from fewstep.texts import read_json

SOURCE = "the teacher's run"

Values = Mapping[str, Any]


def taught(network: Entry, layers: Sequence[Values], given: Sequence[Values]) -> dict[str, Any]:
    """The values of ``Backbone.made_from`` with which the teacher's run was made, as nested keys; none for a teacher
    that is no run of this backbone.

    Args:
        layers: nested values of a config, of which the last wins.
        given: those that a user wrote, which must agree.

    Raises:
        FewstepError: for a key that was given another value, which nothing would use.
    """
    teacher = _of(merge(*layers), "teacher")
    if not isinstance(teacher, str | Path):
        return {}
    try:
        record = read_json(Path(teacher) / CONFIG)
        made = record["config"]["backbone"] if record["backbone"] == network.name else {}
        made = {key: made[key] for key in sorted(network.load().made_from) if key in made}
    except (FewstepError, OSError, KeyError, TypeError):  # no run: what it is instead is said when it is opened
        return {}
    for key, value in made.items():
        for values in given:
            if (got := _of(values, key, value)) != value:
                accepted = f"{value!r}, as in the run of backbone.teacher, whose network this is; or leave it out"
                raise invalid(f"backbone.{key}", got, accepted)
    return {"backbone": made} if made else {}


def check_unused(method: Entry, network: Entry, config: Any) -> None:
    """Refuse a teacher in the ``config`` of a backbone for a run that trains one from random weights, where it would
    silently have no effect. Raises FewstepError."""
    if not method.load().teaches or network.load().begins_with_teacher:
        return
    if config.teacher != type(config).model_fields["teacher"].default:
        accepted = (
            f"to leave it out: method {method.name!r} trains from random weights; train.start=RUN begins with those "
            "of a run"
        )
        raise invalid("backbone.teacher", str(config.teacher), accepted)


def _of(values: Values, key: str, default: Any = None) -> Any:
    """A key of the table ``backbone``."""
    table = values.get("backbone")
    return table.get(key, default) if isinstance(table, Mapping) else default
