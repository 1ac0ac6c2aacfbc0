"""Kernels that plugins register, added to the table once, when the first op is dispatched."""

from __future__ import annotations

import warnings
from functools import lru_cache

from fewstep.errors import FewstepError
from fewstep.plugins.registry import registry


@lru_cache(maxsize=1)
def load_kernels() -> None:
    """Add every kernel that a plugin registers; one that cannot be loaded is a warning, the others serve."""
    from fewstep.ops.table import register

    for name in registry().names("kernel"):
        try:
            register(registry().get("kernel", name).load())
        except FewstepError as error:
            warnings.warn(f"kernel {name!r} is left out: {error}", stacklevel=2)
