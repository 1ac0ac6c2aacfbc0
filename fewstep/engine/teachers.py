"""Where a run's teacher comes from: the backbone, a run of ``fewstep teach``, or a network with random weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from fewstep.core.backbone import Backbone, Teacher
from fewstep.engine.export import check_student, holds_info, load_student
from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry, registry


def open_teacher(backbone: Entry, config: Any) -> Teacher:
    """The network of the run (or student's folder) that ``config.teacher`` names, or the backbone's own teacher.

    A run of a method that does not teach gives a warning: few-step students are no flows in general.

    Raises:
        FewstepError: for a run of another backbone, an unfinished run, or a folder that is not a run's.
    """
    backbone_cls: type[Backbone] = backbone.load()
    run: Any = config.teacher
    if not _is_run(backbone_cls, run):
        return backbone_cls.teacher(_own(backbone_cls, config))
    check_student("backbone.teacher", run, backbone.name)
    student, info = load_student(run)
    if not registry().get("objective", info.method).load().teaches:
        steps = ", ".join(map(str, info.contract.steps))
        warnings.warn(
            f"backbone.teacher: {run} is a student of {info.method}, made for {steps} steps, not a teacher's flow",
            stacklevel=2,
        )
    return student.as_teacher(config)


def check_teacher(backbone: Entry, config: Any) -> None:
    """Check, without reading weights, what ``open_teacher`` reads.

    Raises:
        FewstepError: as ``open_teacher``, as far as the backbone can tell.
    """
    backbone_cls: type[Backbone] = backbone.load()
    if _is_run(backbone_cls, config.teacher):
        check_student("backbone.teacher", config.teacher, backbone.name)
    else:
        backbone_cls.check_config(_own(backbone_cls, config))


def _is_run(backbone: type[Backbone], teacher: Any) -> bool:
    """Whether a teacher is the run of ``fewstep teach`` (or what shall be one), not what the class itself opens."""
    return teacher is not None and ("teacher" not in backbone.Config.model_fields or holds_info(teacher))


def beginner(backbone: Entry, config: Any, seed: int) -> Teacher:
    """The network that training from data begins with, in the place of a teacher; the student is a copy of it.

    Raises:
        FewstepError: for a class that is not made from its config alone.
    """
    backbone_cls: type[Backbone] = backbone.load()
    torch.manual_seed(seed)
    try:
        return backbone_cls.initial(_own(backbone_cls, config)).as_teacher(config)
    except TypeError as error:
        raise FewstepError(
            f"backbone {backbone.name!r} makes no network from its config ({error}); accepted: one with `initial`"
        ) from error


def _own(backbone: type[Backbone], config: Any) -> Any:
    """The config as the backbone's class declares it: without the key ``teacher`` if the registry added that."""
    declared = backbone.Config
    if "teacher" in declared.model_fields:
        return config
    return declared(**{name: getattr(config, name) for name in declared.model_fields})
