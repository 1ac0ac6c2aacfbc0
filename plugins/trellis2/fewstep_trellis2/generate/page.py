"""What ``fewstep app --backbone trellis2`` shows: TRELLIS's page with other networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewstep_trellis.generate.api import Options
from fewstep_trellis.generate.page import TrellisMaker

from fewstep_trellis2.flow import RELEASED
from fewstep_trellis2.generate.api import Generator
from fewstep_trellis2.generate.models import NAMES, choose, models_of


class Trellis2Maker(TrellisMaker):
    """The same as ``TrellisMaker``, for TRELLIS.2.

    Args:
        teacher: pipeline folder or hub name; None: the released one.
        students: of ``--student``.
        options: device, memory, encoder.
        kind: which way through the stages; None: as ``pipeline.json`` says.
    """

    system = "TRELLIS.2"
    names: Mapping[str, str] = NAMES

    def __init__(self, teacher: str | None, students: Sequence[str], options: Options, kind: str | None) -> None:
        self.kind = kind
        super().__init__(teacher or RELEASED, students, options)

    def _chosen(self, student: str, steps: tuple[int, ...] | None) -> Any:
        return choose(models_of(self.teacher, student, steps, kind=self.kind))

    def _generator(self, chosen: Any, options: Options) -> Any:
        return Generator(chosen, options)
