"""Students as files: a folder with the weights in the backbone's own format and ``config.json`` beside them.

``config.json`` holds the sampling contract, how the student was made, what that cost, and checksums. The state that a
run resumes from is in ``fewstep.engine.store``.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

import fewstep
from fewstep.config.base import Strict, validate
from fewstep.config.recorded import WRITTEN
from fewstep.core.backbone import Backbone
from fewstep.core.contract import Contract
from fewstep.engine.adapters import merged, save_adapters
from fewstep.errors import FewstepError, invalid
from fewstep.files import new_folder, sha256, write_json
from fewstep.plugins.registry import registry
from fewstep.texts import read_json

INFO = "config.json"
FORMAT: Literal["fewstep-student-1"] = "fewstep-student-1"


class StudentInfo(Strict):
    """The contents of a student's ``config.json``."""

    format: Literal["fewstep-student-1"] = Field(default=FORMAT, description="version of this file")
    contract: Contract = Field(description="how the student is to be sampled")
    method: str = Field(description="registered objective")
    backbone: str = Field(description="registered backbone, which reads the weights")
    dataset: str = Field(description="registered data set of the run")
    plugin: str = Field(description="distribution that registers the backbone")
    weights: str = Field(description="'student', or the rate of the exported EMA")
    step: int = Field(description="iterations trained")
    seconds: float = Field(description="training time on the run's machine")
    budget: dict[str, dict[str, int]] = Field(description="evaluations by network: forward, tangent, backward")
    derivatives: str = Field(description="one-pass, two-pass or finite-difference, and why")
    config: dict[str, Any] = Field(description="the run's config, as resolved")
    versions: dict[str, str] = Field(description="versions of Python and the packages that made it")
    fewstep: str = Field(default=fewstep.__version__, description="version of fewstep")
    sha256: dict[str, str] = Field(default_factory=dict, description="checksums of the other files")


def save_student(
    folder: Path, student: Backbone, info: StudentInfo, trained: Iterable[str] = (), *, half: bool = False
) -> None:
    """Write a student. The folder appears complete or not at all, and replaces an older one. Adapters are merged into
    the weights, and also written as peft's files.

    Args:
        trained: names of the parameters that were trained, for a student with adapters.
        half: store half-precision weights.

    Raises:
        FewstepError: if the folder cannot be written.
    """
    with new_folder(folder) as temp:
        save_adapters(temp, student, trained, info.backbone)
        merged(student).save(temp, half=half)
        sums = {path.name: sha256(path) for path in sorted(temp.iterdir()) if path.is_file()}
        write_json(temp / INFO, info.model_copy(update={"sha256": sums}).model_dump(mode="json"))


def load_student(folder: Path) -> tuple[Backbone, StudentInfo]:
    """A student, in evaluation mode on the CPU, and its ``config.json``. A run's folder stands for its student.

    Raises:
        FewstepError: for a missing, empty, foreign, unfinished or damaged folder, or a backbone that is not installed.
    """
    info = read_info(folder)
    folder = student_folder(folder)
    for name, expected in info.sha256.items():
        if not (folder / name).is_file():
            raise FewstepError(f"student {str(folder)!r}: {name} is missing")
        if not _unchanged(folder / name, expected):
            raise FewstepError(f"student {str(folder / name)!r}: truncated or changed (its checksum does not match)")
    try:
        backbone_cls = registry().get("backbone", info.backbone).load()
    except FewstepError as error:
        needs = f"needs backbone {info.backbone!r} of package {info.plugin!r}"
        raise FewstepError(f"student {str(folder)!r} {needs}: {error}") from None
    try:
        student: Backbone = backbone_cls.load(folder)
    except FewstepError:
        raise
    except Exception as error:
        raise FewstepError(f"student {str(folder)!r}: backbone {info.backbone!r} cannot read it: {error}") from error
    check_finite(student.state_dict(), f"student {str(folder)!r}")
    return student.eval(), info


def _unchanged(path: Path, expected: str) -> bool:
    """Whether a file has this checksum; a byte order mark that an editor put before JSON is ignored."""
    if path.suffix == ".json":
        return hashlib.sha256(path.read_bytes().removeprefix(codecs.BOM_UTF8)).hexdigest() == expected
    return sha256(path) == expected


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that no training leaves behind: their samples would be empty for no visible reason.

    Raises:
        FewstepError: for values that are not finite, naming the tensors, or if all are zero.
    """
    numbers = {name: value for name, value in weights.items() if value.is_floating_point() and value.numel()}
    counts = {name: int((~value.isfinite()).sum()) for name, value in numbers.items()}
    bad = [f"{name} ({count} of {numbers[name].numel()})" for name, count in counts.items() if count]
    if bad:
        more = f" and {len(bad) - 3} more tensors" if len(bad) > 3 else ""
        raise FewstepError(f"{source}: weights that are not finite: {', '.join(bad[:3])}{more}")
    if numbers and not any(bool(value.any()) for value in numbers.values()):
        raise FewstepError(f"{source}: every weight is 0")


def read_info(folder: Path) -> StudentInfo:
    """``config.json`` of a student's (or a run's) folder, without its weights.

    Raises:
        FewstepError: for a missing, empty, foreign or unfinished folder.
    """
    name = f"student {str(folder)!r}"
    if not folder.is_dir():
        kind = "a file" if folder.is_file() else "no such folder"
        raise FewstepError(f"{name}: {kind}; accepted: {WRITTEN}")
    if not any(folder.iterdir()):
        raise FewstepError(f"{name}: the folder is empty; accepted: one with {INFO}, model.safetensors and model.json")
    file = student_folder(folder) / INFO
    if not file.is_file():
        inside = sorted(path.name for path in folder.iterdir() if (student_folder(path) / INFO).is_file())
        accepted = f"one of its students {', '.join(inside)}" if inside else WRITTEN
        raise FewstepError(f"{name}: holds no {INFO}; accepted: {accepted}")
    try:
        values = read_json(file)
    except FewstepError as error:
        raise FewstepError(f"student {error}") from None
    values = values if isinstance(values, dict) else {}
    if "sources" in values:  # config.json of a run's own folder
        raise FewstepError(f"{name}: this run has not finished, so it has no student; continue it with --resume")
    got = values.get("format")
    if got != FORMAT:
        raise FewstepError(f"student {str(file)!r}: format {got!r}; accepted: {FORMAT!r}, in {WRITTEN}")
    try:
        return validate(StudentInfo, values)
    except FewstepError as error:
        raise FewstepError(f"student {str(file)!r}: {error}") from None


def check_student(key: str, folder: Path, backbone: str) -> None:
    """Refuse a folder, named by the config's ``key``, that holds no student of this backbone.

    Raises:
        FewstepError: naming the key and both backbones, or what is wrong with the folder.
    """
    try:
        actual = read_info(folder).backbone
    except FewstepError as error:
        raise FewstepError(f"{key}: {error}") from None
    if actual != backbone:
        raise invalid(key, str(folder), f"a student of {backbone!r}; this one is of {actual!r}")


def holds_info(folder: object) -> bool:
    """Whether this is the path of a student's folder, or of a run's, finished or not."""
    return isinstance(folder, Path) and (student_folder(folder) / INFO).is_file()


def student_folder(folder: Path) -> Path:
    """Where the student's own files are: below a run's folder, else the folder itself."""
    return folder / "student" if (folder / "student" / INFO).is_file() else folder
