"""What a run reads and does not write: whether its data and the student it starts from are there."""

from __future__ import annotations

from fewstep.config.run import Resolved
from fewstep.engine.export import check_student


def check_inputs(resolved: Resolved, *, begun: bool = False) -> None:
    """Refuse, before anything is loaded, data that are not there and, unless the run has begun, a ``train.start`` that
    is not a student of this backbone.

    Raises:
        FewstepError: naming the key, and both backbones or what is wrong with the folder.
    """
    resolved.dataset.load().check_config(resolved.config.data)
    if not begun and (start := resolved.config.train.start) is not None:
        check_student("train.start", start, resolved.backbone.name)
