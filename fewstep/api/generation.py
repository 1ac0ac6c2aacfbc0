"""``fewstep.generate``: the Python function behind ``fewstep generate``, served by the chosen backbone."""

from __future__ import annotations

import inspect
from typing import Any

from fewstep.errors import FewstepError, unknown
from fewstep.plugins.registry import registry
from fewstep.plugins.shared import choose


def generate(inputs: Any, *, backbone: str | None = None, **options: Any) -> Any:
    """Make finished results from prompts.

    Args:
        inputs: one prompt or a list of them; the backbone defines what a prompt is.
        backbone: which backbone's implementation; None for the one that fewstep ships.
        options: of the implementation, such as ``student``, ``steps``, ``seed`` and ``device``.

    Returns:
        A result, or a list of them for a list of inputs.

    Raises:
        FewstepError: for a backbone that does not generate, an unknown option, or bad input to the one that does.
    """
    name = choose("generate", backbone).name
    if name not in registry().names("generate function"):
        raise FewstepError(f"backbone {name!r} offers `fewstep generate` on the command line only")
    function = registry().get("generate function", name).load()
    _, *accepted = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in accepted]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted):  # **options: it checks them itself
        for option in options:
            if option not in names:
                raise unknown("option of generate", option, names)
    return function(inputs, **options)
