"""Where the files come from: a folder, a clone beside it, the hub; only what is needed; one clear error otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.source import Repository, Unreachable, checkpoint, open_source
from fewstep_trellis.slat import StructuredLatentFlow
from huggingface_hub import errors
from pipeline_helpers import MODELS, ROLES, describe

from fewstep.errors import FewstepError


class Hub:
    """A hub of folders ``root/owner/name`` that notes what is fetched."""

    def __init__(self, root: Path) -> None:
        self.root, self.fetched = root, list[str]()

    def __call__(self, repository: str, file: str, **more: Any) -> str:
        if not (self.root / repository).is_dir():
            raise errors.LocalEntryNotFoundError("no connection")
        if not (self.root / repository / file).is_file():
            raise errors.EntryNotFoundError(file)
        self.fetched.append(f"{repository}/{file}")
        return str(self.root / repository / file)


@pytest.fixture
def hub(tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    shutil.copytree(tiny_pipeline, tmp_path / "hub/microsoft/TRELLIS-image-large")
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found)
    return found


def test_only_what_is_asked_for_is_fetched(hub: Hub) -> None:
    name = "microsoft/TRELLIS-image-large"
    pipeline = Pipeline.open(name)
    assert hub.fetched == [f"{name}/pipeline.json"]
    assert set(pipeline.arguments) == {"ss", "slat"}
    assert [file for file in hub.fetched if file.endswith(".safetensors")] == []
    pipeline.model("slat_decoder_gs")
    weights = [file for file in hub.fetched if file.endswith(".safetensors")]
    assert weights == [f"{name}/ckpts/slat_dec_gs.safetensors"]


def test_a_full_path_leads_to_another_repository(hub: Hub) -> None:
    text = hub.root / "microsoft/TRELLIS-text-base"
    text.mkdir()
    models = {role: f"microsoft/TRELLIS-image-large/ckpts/{name}" for role, name in ROLES.items()}
    describe(text, models=models, image_cond_model=None, text_cond_model="openai/clip-vit-large-patch14")
    pipeline = Pipeline.open("microsoft/TRELLIS-text-base")
    assert type(pipeline.model("slat_decoder_mesh")).__name__ == "SLatMeshDecoder"
    assert "microsoft/TRELLIS-image-large/ckpts/slat_dec_mesh.safetensors" in hub.fetched
    assert not any("mesh" in file for file in hub.fetched if file.startswith("microsoft/TRELLIS-text-base"))


def test_its_own_repository_comes_first(hub: Hub) -> None:
    inner = hub.root / "microsoft/TRELLIS-image-large/a/b"
    shutil.copytree(hub.root / "microsoft/TRELLIS-image-large/ckpts", inner)
    found = checkpoint(Repository("microsoft/TRELLIS-image-large"), "a/b/ss_dec")
    assert found == inner / "ss_dec"


def test_a_clone_beside_the_folder_stands_for_the_hub(tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "TRELLIS-image-large")
    text = tmp_path / "TRELLIS-text-base"
    text.mkdir()
    models = {role: f"microsoft/TRELLIS-image-large/ckpts/{name}" for role, name in ROLES.items()}
    pipeline = Pipeline.open(describe(text, models=models))
    assert pipeline.stem("slat_decoder_gs") == tmp_path / "TRELLIS-image-large/ckpts/slat_dec_gs"


@pytest.mark.parametrize(("role", "name"), ROLES.items())
def test_each_role_loads_as_its_class(tiny_pipeline: Path, role: str, name: str) -> None:
    model = Pipeline.open(tiny_pipeline).model(role)
    assert type(model).__name__ == MODELS[name][0].removeprefix("Elastic")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_flow_knows_its_samplers_sigma_min(tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "p")
    changed = {"name": "FlowEulerSampler", "args": {"sigma_min": 0.25}, "params": {}}
    pipeline = Pipeline.open(describe(tmp_path / "p", slat_sampler=changed))
    assert pipeline.flow("slat").interpolant.sigma_min == 0.25
    assert pipeline.flow("ss").interpolant.sigma_min == 1e-5


def test_a_flow_of_either_stage_trains_with_trelliss_sigma_min() -> None:
    assert {flow.interpolant.sigma_min for flow in (StructureFlow, StructuredLatentFlow)} == {1e-5}


def test_a_checkpoint_of_another_class_is_refused(tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "p")
    models = {role: f"ckpts/{name}" for role, name in ROLES.items()}
    describe(tmp_path / "p", models={**models, "slat_decoder_mesh": "ckpts/slat_dec_gs"})
    with pytest.raises(FewstepError, match="holds a SLatGaussianDecoder; accepted: a SLatMeshDecoder"):
        Pipeline.open(tmp_path / "p").model("slat_decoder_mesh")


def test_a_missing_file_names_every_place_looked_at(tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "p")
    (tmp_path / "p/ckpts/ss_dec.safetensors").unlink()
    with pytest.raises(FewstepError, match=r"ckpts/ss_dec' is missing; looked for .*/p/ckpts/ss_dec.safetensors"):
        Pipeline.open(tmp_path / "p").model("sparse_structure_decoder")


def test_a_pointer_of_git_lfs_is_told_as_such(tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "p")
    (tmp_path / "p/ckpts/ss_dec.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(FewstepError, match="git lfs pull"):
        Pipeline.open(tmp_path / "p").model("sparse_structure_decoder")


def failing(error: Exception) -> Any:
    def download(repository: str, file: str) -> str:
        raise error

    return download


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.LocalEntryNotFoundError("no route"), "not in the cache, and the hub cannot be reached"),
        (errors.OfflineModeIsEnabled("offline mode"), "offline mode"),
        (ConnectionError("reset by peer"), "reset by peer"),
        (OSError(28, "No space left on device"), "No space left"),
        (errors.HFValidationError("bad name"), "bad name"),
    ],
)
def test_a_hub_that_fails_is_one_error_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing(error))
    with pytest.raises(Unreachable) as raised:
        Pipeline.open("microsoft/TRELLIS-image-large")
    message = str(raised.value)
    assert text in message
    assert "microsoft/TRELLIS-image-large/pipeline.json" in message
    assert "git clone https://huggingface.co/microsoft/TRELLIS-image-large" in message


def test_offline_the_cache_of_the_second_place_still_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repository: str, file: str) -> str:
        if repository == "microsoft/TRELLIS-text-base":
            raise errors.LocalEntryNotFoundError("offline")
        return hub(repository, file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    found = checkpoint(Repository("microsoft/TRELLIS-text-base"), "microsoft/TRELLIS-image-large/ckpts/ss_dec")
    assert found.name == "ss_dec"


def test_what_is_neither_folder_nor_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match=r"a folder without pipeline.json"):
        open_source(tmp_path)
    for name in ("nowhere", "a/b/c", "./x/y", str(tmp_path / "none")):
        with pytest.raises(FewstepError, match=r"accepted: a folder with pipeline\.json, or a name of the hub"):
            open_source(name)
