"""What a method needs held against what a backbone provides, before any weights load. Imports no torch."""

from __future__ import annotations

from typing import Any

from fewstep.errors import FewstepError


def check_needs(objective_cls: Any, backbone_cls: Any, *, method: str = "", backbone: str = "") -> None:
    """Compare ``Objective.needs`` with ``Backbone.provides``. A missing "jvp" is met by finite differences.

    Args:
        method, backbone: the registered names for the message; the class names stand in for them.

    Raises:
        FewstepError: naming both sides and what is missing.
    """
    missing = sorted(set(objective_cls.needs) - set(backbone_cls.provides) - {"jvp"})
    if missing:
        raise FewstepError(
            f"method {(method or objective_cls.__name__)!r} needs {', '.join(map(repr, missing))}, which backbone "
            f"{(backbone or backbone_cls.__name__)!r} does not provide: it provides "
            f"{', '.join(sorted(backbone_cls.provides)) or 'nothing'}, the method needs "
            f"{', '.join(sorted(objective_cls.needs))}"
        )
