"""Students as files: what is written, and one clear error for every folder that is not one."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import engine_helpers
import pytest
import torch
from engine_helpers import Tiny
from rich.console import Console

import fewstep
from fewstep.core.contract import Contract
from fewstep.engine import session
from fewstep.engine.export import StudentInfo, load_student, read_info, save_student
from fewstep.engine.store import Store
from fewstep.errors import FewstepError
from fewstep.files import clean, discard, new_folder, sha256, write_file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, to be copied before it is damaged."""
    engine_helpers.install()
    keys = ["train.steps=3", "train.batch_size=2", "train.device=cpu", "train.threads=1", "backbone.width=5"]
    resolved = engine_helpers.resolve("tiny-transport", "tiny", layers=keys)
    return session.start(resolved, tmp_path_factory.mktemp("runs") / "run", False, Console(file=io.StringIO()))


@pytest.fixture
def student(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "student", tmp_path / "student"))


def info(**keys: Any) -> StudentInfo:
    values = {"contract": Contract(), "method": "m", "backbone": "tiny", "dataset": "d", "plugin": "engine-tests"}
    values |= {"weights": "student", "step": 1, "seconds": 0.0, "budget": {}, "derivatives": "", "config": {}}
    return StudentInfo(**{**values, "versions": {}, **keys})


def test_student_says_everything_about_itself(student: Path) -> None:
    net, found = load_student(student)
    assert isinstance(net, Tiny)
    assert not net.training
    assert net.width == 5
    assert found.contract == Contract(sampler="euler")
    assert (found.method, found.backbone, found.dataset, found.step) == ("tiny-transport", "tiny", "tiny-data", 3)
    assert found.budget["teacher"] == {"forward": 6, "tangent": 0, "backward": 0}
    assert found.budget["student"] == {"forward": 0, "tangent": 6, "backward": 6}
    assert found.derivatives.startswith("one-pass")
    assert found.config["train"]["steps"] == 3
    assert found.fewstep == fewstep.__version__
    assert found.sha256 == {name: sha256(student / name) for name in ("model.json", "model.safetensors")}
    assert {path.name for path in student.iterdir()} == {"config.json", "model.json", "model.safetensors"}


def test_weights_come_back_bit_for_bit_and_a_run_stands_for_its_student(finished: Path) -> None:
    engine_helpers.install()
    state = Store(finished / "checkpoints").newest()
    assert state is not None
    for key, value in load_student(finished)[0].state_dict().items():
        assert torch.equal(value, state.tensors[f"net/student/{key}"])


def test_half_precision_export(tmp_path: Path) -> None:
    save_student(tmp_path / "student", Tiny(), info(), half=True)
    assert load_student(tmp_path / "student")[1].weights == "student"
    assert (tmp_path / "student/model.safetensors").stat().st_size < 600


def test_export_replaces_an_older_student_whole(student: Path) -> None:
    (student / "stray.txt").write_text("old")
    save_student(student, Tiny(7), info())
    assert load_student(student)[0].width == 7
    assert not (student / "stray.txt").exists()
    assert [path.name for path in student.parent.iterdir()] == ["student"]


def edit(folder: Path, **keys: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda s: shutil.rmtree(s), "no such folder"),
        (lambda s: (shutil.rmtree(s), s.mkdir()), "the folder is empty"),
        (lambda s: (s / "config.json").unlink(), "holds no config.json"),
        (lambda s: cut(s / "config.json"), "config.json: truncated or not JSON"),
        (lambda s: (s / "config.json").write_text('{"_class_name": "Flux"}'), "format None; accepted: 'fewstep-stud"),
        (lambda s: (s / "config.json").write_text("[1]"), "format None"),
        (lambda s: edit(s, format="fewstep-student-9"), "format 'fewstep-student-9'; accepted: 'fewstep-student-1'"),
        (lambda s: edit(s, step="many"), "config.json': step: "),
        (lambda s: cut(s / "model.safetensors"), "model.safetensors': truncated or changed"),
        (lambda s: (s / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda s: (s / "model.json").write_text("{}"), "model.json': truncated or changed"),
        (lambda s: edit(s, backbone="tinny"), "needs backbone 'tinny' of package 'engine-tests': unknown backbone"),
        (
            lambda s: (cut(s / "model.safetensors"), edit(s, sha256={})),
            "backbone 'tiny' cannot read it",
        ),
    ],
)
def test_a_folder_that_is_no_student(student: Path, damage: Any, text: str) -> None:
    engine_helpers.install()
    damage(student)
    with pytest.raises(FewstepError) as caught:
        load_student(student)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_damage(student: Path) -> None:
    engine_helpers.install()
    for name in ("config.json", "model.json"):
        (student / name).write_bytes(b"\xef\xbb\xbf" + (student / name).read_bytes())
    assert load_student(student)[1].weights


def test_unfinished_run_says_so(finished: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(copied / "student")
    with pytest.raises(FewstepError, match="has not finished, so it has no student; continue it with --resume"):
        read_info(copied)


def interrupted(folder: Path, error: Exception) -> None:
    with new_folder(folder) as temp:
        (temp / "a").write_text("new")
        raise error


def test_a_write_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "it") as temp:
        (temp / "a").write_text("old")
    for error, text in ((OSError(28, "No space left"), "cannot be written: No space left"), (ValueError("bug"), "bug")):
        with pytest.raises((FewstepError, ValueError), match=text):
            interrupted(tmp_path / "it", error)
    assert (tmp_path / "it/a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_leftovers_are_cleaned_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-00000003-99").mkdir()
    (tmp_path / ".tmp-config.json-99").touch()
    (tmp_path / "step-00000002").mkdir()
    assert Store(tmp_path).steps() == [2]
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    discard(tmp_path / "missing")
    (tmp_path / "step-00000002/file").touch()
    with pytest.raises(FewstepError, match="cannot be written"):
        write_file(tmp_path / "step-00000002/file/below", "")


def test_store_keeps_the_last_k_and_replaces_a_step(tmp_path: Path) -> None:
    store = Store(tmp_path / "c", keep=2)
    assert store.newest() is None
    for step in (1, 2, 10, 3):
        store.save(step, {"a": torch.full((2,), float(step))}, {"k": 1}, {})
    store.settle()
    assert store.steps() == [3, 10]
    store.save(10, {"a": torch.zeros(2)}, {"k": 1}, {"new": True})
    found = store.newest()
    assert found is not None
    assert (found.step, found.config, found.scalars) == (10, {"k": 1}, {"new": True})
    assert torch.equal(found.tensors["a"], torch.zeros(2))


def test_tied_sliced_scalar_and_low_precision_tensors_survive(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "tied": base, "row": base[1], "turned": base.T, "scalar": torch.tensor(3.0)}
    tensors |= {"half": base.to(torch.bfloat16), "count": torch.tensor([2**40]), "none": torch.zeros(0)}
    store = Store(tmp_path)
    store.save(1, tensors, {}, {})
    newest = store.newest()
    assert newest is not None
    found = newest.tensors
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in tensors.items())


def test_foreign_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001/state.json").write_text("{}")
    with pytest.raises(FewstepError, match=r"step-00000001/state\.json' cannot be resumed from: not a resume state"):
        Store(tmp_path).newest()
