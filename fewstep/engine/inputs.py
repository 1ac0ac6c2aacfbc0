"""What a run reads and does not write: whether its data, its teacher and the student it starts from are there."""

from __future__ import annotations

from fewstep.config.run import Resolved
from fewstep.engine.export import check_student
from fewstep.engine.teachers import check_teacher


def check_inputs(resolved: Resolved, *, begun: bool = False, teacher: bool = True) -> None:
    """Refuse, before anything is loaded, data or a teacher that are not there and, unless the run has begun, a
    ``train.start`` that is not a student of this backbone.

    Args:
        teacher: look at the backbone's files too; the memory of a run can be computed without them.

    Raises:
        FewstepError: naming the key, and both backbones or what is wrong with the file or folder.
    """
    resolved.dataset.load().check_config(resolved.config.data)
    if teacher and not resolved.method.load().teaches:
        check_teacher(resolved.backbone, resolved.config.backbone)
    if not begun and (start := resolved.config.train.start) is not None:
        check_student("train.start", start, resolved.backbone.name)
