"""A student's folder for the hub: its card, its files, and that what is uploaded can be loaded by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.students import find_students
from fewstep_trellis.shipped import NANO, shipped_students

import fewstep
from fewstep.api.push_card import contract_in_words
from fewstep.benchmark.students import load_students
from fewstep.cli import main
from fewstep.core.contract import Contract
from fewstep.errors import FewstepError
from fewstep.files import sha256
from fewstep.plugins.registry import registry

PCM = shipped_students("ss")["pcm"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache without a network; what is uploaded appears there as if it had been fetched."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def upload_folder(*, repo_id: str, folder_path: Path, commit_message: str) -> None:
        place, revision = cache / f"models--{repo_id.replace('/', '--')}", "0" * 40
        shutil.copytree(folder_path, place / "snapshots" / revision)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(revision)

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    return cache


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A folder as ``distill --stage both`` leaves it."""
    for stage in ("ss", "slat"):
        shutil.copytree(shipped_students(stage)["mdt-vd"], tmp_path / "both" / stage / "student")
    return tmp_path / "both"


def test_what_is_pushed_is_loaded_by_its_name(hub: Path, tmp_path: Path) -> None:
    folder = fewstep.push(PCM, "me/pcm", out=tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"README.md", *(path.name for path in PCM.iterdir())}
    assert all(sha256(path) == sha256(folder / path.name) for path in PCM.iterdir())
    student, own = fewstep.load("me/pcm", device="cpu"), fewstep.load(PCM, device="cpu")
    assert hub in student.folder.parents
    prompts = own.prompts(1)
    assert torch.equal(student.sample(prompts, seed=3), own.sample(prompts, seed=3))


def test_both_stages_in_one_repository(hub: Path, tmp_path: Path, both: Path) -> None:
    folder = fewstep.push(both, "me/both", out=tmp_path / "out")
    text = (folder / "README.md").read_text()
    assert text.index("stage ss") < text.index("stage slat")
    assert "fewstep generate --backbone trellis picture.png -o results/ --student me/both --steps 1" in text
    assert fewstep.load("me/both/slat", device="cpu").info.backbone == "trellis-slat"
    assert set(find_students(["me/both"], Pipeline.open(NANO))) == {"ss", "slat"}
    networks = {"ss": registry().get("backbone", "trellis"), "slat": registry().get("backbone", "trellis-slat")}
    assert len(load_students(networks, [], [(None, "me/both")])) == 1


def test_the_header_is_read_by_the_hubs_own_library(tmp_path: Path) -> None:
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "table.md").write_text("# trellis on x\n\n## Quality\n\n| method | 1 |\n")
    (bench / "sheet.png").write_bytes(b"picture")
    keys: dict[str, Any] = {"license": "mit", "teacher": "microsoft/TRELLIS-image-large", "bench": bench}
    folder = fewstep.push(PCM, "me/pcm", out=tmp_path / "out", dry_run=True, **keys)
    assert huggingface_hub.metadata_load(folder / "README.md") == {
        "library_name": "fewstep",
        "license": "mit",
        "base_model": "microsoft/TRELLIS-image-large",
        "tags": ["fewstep", "distillation", "pcm", "trellis"],
    }
    text = (folder / "README.md").read_text()
    assert "### trellis on x\n" in text
    assert "#### Quality\n\n| method | 1 |" in text
    assert "![sheet.png](sheet.png)" in text
    assert (folder / "sheet.png").read_bytes() == b"picture"
    assert "1000 iterations of 8 samples" in text
    assert "teacher 16,000 forward; student 16,000 forward, 8,000 backward" in text


@pytest.mark.parametrize(
    ("contract", "parts"),
    [
        (Contract(steps=(1,)), ["Made for 1 step of the sampler `euler`", "No guidance"]),
        (Contract(steps=(1, 2), times=(1.0, 0.5)), ["1, 2 steps", "at the times 1, 0.5 "]),
        (Contract(rescale_t=3.0, guidance=2.5), ["with r = 3.", "g = 2.5"]),
        (Contract(strength=2.0, strengths=(0.0, 4.0)), ["by default 2; trained from 0 to 4."]),
        (Contract(sampler="gamma", noise=0.3, two_time=True), ["`gamma:0.3`", "where a step ends"]),
    ],
)
def test_a_contract_in_words(contract: Contract, parts: list[str]) -> None:
    text = "\n".join(contract_in_words(contract))
    assert all(part in text for part in parts)


def test_the_command_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no way to huggingface.co\nand more")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    words = ["push", str(PCM), "me/pcm", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"not uploaded: no way to huggingface.co. The folder is kept: {tmp_path / 'out'}" in error
    assert (tmp_path / "out" / "README.md").is_file()
    assert main([*words, "--dry-run"]) == 2
    assert f"hf upload me/pcm {tmp_path / 'out'} ." in capsys.readouterr().err
    assert main([*words, "--dry-run", "--force"]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("student", "repository", "keys", "text"),
    [
        (PCM, "pcm", {}, "repository: got 'pcm'; accepted: owner/name"),
        (PCM, "me/pcm", {"teacher": "TRELLIS"}, "--teacher: got 'TRELLIS'"),
        (PCM, "me/pcm", {"license": "MIT License"}, "--license: got 'MIT License'"),
        (PCM, "me/pcm", {"bench": "nothing"}, "--bench: got 'nothing'"),
        ("nothing", "me/pcm", {}, "student 'nothing': no such folder"),
    ],
)
def test_refusals(tmp_path: Path, student: Path | str, repository: str, keys: dict[str, Any], text: str) -> None:
    with pytest.raises(FewstepError) as error:
        fewstep.push(student, repository, out=tmp_path / "out", dry_run=True, **keys)
    assert text in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_card_is_never_replaced(tmp_path: Path) -> None:
    shutil.copytree(PCM, tmp_path / "run")
    with pytest.raises(FewstepError, match=r"run' exists and has no README.md; accepted: a path that does not exist"):
        fewstep.push(tmp_path / "run", "me/pcm", out=tmp_path / "run", dry_run=True, force=True)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_student_that_is_nowhere(hub: Path) -> None:
    with pytest.raises(FewstepError, match="--student 'me/none': no such folder, and not available from the hub: "):
        find_students(["me/none"], Pipeline.open(NANO))
