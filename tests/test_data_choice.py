"""One data set for training and another for evaluation: of ``sample`` and ``bench``, checked before weights load."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import refusal

import fewstep
from fewstep.cli import main
from fewstep.engine.export import load_student
from fewstep.errors import FewstepError

SMALL = ("backbone.pretrain=0", "backbone.width=8", "data.size=16", "train.batch_size=4", "train.steps=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "s"
    assert main(["distill", "-m", "mdt-vm", "-b", "toy", *SMALL, "data.seed=3", "--out", str(folder)]) == 0
    return str(folder)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a network fails the test."""

    def load(*_: object) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr("fewstep.api.loading.load_student", load)
    monkeypatch.setattr("fewstep.benchmark.students.load_student", load)
    monkeypatch.setattr("fewstep.benchmark.api.open_teacher", load)


def test_prompts_are_of_the_data_set_that_was_asked_for(run: str, tmp_path: Path) -> None:
    own, other = fewstep.load(run), fewstep.load(run, data={"layout": "packed", "held_out": 5})
    assert own.prompts(4).layout.batch_size == 4
    prompts = other.prompts(9)
    assert prompts.layout.batch_size == 5
    assert len(prompts.x0) > 5, "sets of points"
    assert other.suite.dataset.config.seed == 3, "what was not given is the training's"  # type: ignore[attr-defined]
    named = fewstep.load(run, dataset="toy", data={"held_out": 5})
    assert named.suite.dataset.config.held_out == 5  # type: ignore[attr-defined]
    words = ["sample", run, "data.held_out=5", "data.layout=packed", "--dataset", "toy", "--steps", "1", "--count", "3"]
    assert main([*words, "--out", str(tmp_path / "s.png")]) == 0


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("sample", "data.held_uot=5"), "did you mean 'data.held_out'?"),
        (("sample", "data.layout=loose"), "data.layout: got 'loose'"),
        (("sample", "dat.held_out=5"), "unknown key 'dat'"),
        (("sample", "--dataset", "tyo"), "unknown dataset 'tyo'"),
        (("sample", "--dataset", "trellis-ss", "data.roots=nowhere"), "nowhere"),
        (("bench", "--dataset", "images"), "SmoothedImages has no held-out objects; accepted: --dataset toy"),
        (("bench", "--dataset", "tyo"), "unknown dataset 'tyo'"),
        (("bench", "data.held_uot=5"), "did you mean 'data.held_out'?"),
        (("bench", "--backbone", "trellis", "data.root=nowhere"), "data.root: got 'nowhere'; accepted: a prepared set"),
        (("bench", "--backbone", "trellis", "--dataset", "trellis-ss", "data.roots=x"), "no held-out objects"),
    ],
)
def test_a_data_set_that_cannot_be_is_refused_before_weights_load(
    words: tuple[str, ...], part: str, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    which = [run] if words[0] == "sample" else ["--student", run] + (["-b", "toy"] if "--backbone" not in words else [])
    code = main([words[0], *which, *words[1:], "--out", str(tmp_path / "out")])
    assert part in refusal(code, *capsys.readouterr())
    assert not (tmp_path / "out").exists()


def test_the_check_before_weights_can_fail(no_weights: None, run: str) -> None:
    assert load_student(Path(run))  # another module's
    with pytest.raises(pytest.fail.Exception, match="weights were loaded"):
        fewstep.load(run)
    with pytest.raises(FewstepError):
        fewstep.load(run, dataset="tyo")
