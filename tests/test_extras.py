"""What the base install can do alone, and the one sentence for each package that an extra brings."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import refusal

from fewstep.errors import EXTRAS, FewstepError, install, missing, need

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = {
    "PIL": "pillow",
    "open3d": "open3d-cpu",
    "sklearn": "scikit-learn",
}  # by import name, where the two differ
OPTIONAL = [package for packages in EXTRAS.values() for package in packages]


MAIN = "from fewstep.cli import main\nsys.exit(main(sys.argv[1:]))"


def base_only(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code where the packages of every extra are as good as not installed."""
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
    command = [sys.executable, "-c", hidden + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, check=False)


def test_the_table_is_that_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text[text.index("[project.optional-dependencies]") : text.index("[project.scripts]")]
    for extra, packages in EXTRAS.items():
        listed = re.search(rf"^{extra} = \[(.*?)\]$", section, re.MULTILINE | re.DOTALL)
        assert listed, extra
        for package in packages:
            name = DISTRIBUTIONS.get(package, package.replace("_", "-"))
            assert re.search(rf'"{name}\b', listed[1]), f"{extra} lacks {name}"


def test_no_package_of_an_extra_is_a_dependency() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    base = text[text.index("\ndependencies = [") : text.index("[project.optional-dependencies]")]
    names = set(re.findall(r'^    "([\w-]+)', base, re.MULTILINE))
    assert names == {
        "torch", "numpy", "einops", "pluggy", "pydantic", "rich", "typer", "safetensors", "tomli",
    }  # fmt: skip


def test_every_import_of_an_optional_package_is_known() -> None:
    """A new third-party import must be a dependency, or stand in the table with its extra."""
    installed = packages_distributions()
    known = {"torch", "numpy", "einops", "pluggy", "pydantic", "pydantic_core", "rich", "typer", "safetensors", "tomli"}
    known.add("pandas")  # of ``BenchTable.to_pandas``, which says itself how to get it
    ours = {path.name for path in ROOT.glob("plugins/*/fewstep_*")} | {"fewstep"}
    pattern = re.compile(r'^\s*(?:import|from) (\w+)|(?:import_module|need)\("(\w+)', re.MULTILINE)
    for path in [*(ROOT / "fewstep").rglob("*.py"), *(ROOT / "plugins").rglob("fewstep_*/**/*.py")]:
        for match in pattern.finditer(path.read_text(encoding="utf-8")):
            name = match[1] or match[2]
            if name in installed and name not in ours:
                assert name in known or name in OPTIONAL, f"{path}: {name}"


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("generate", "chair.png", "-o", "chair.glb"), "trellis"),
        (("bench", "--backbone", "trellis", "--methods", "mdt-vd"), "bench"),
        (("data", "prepare", "sweethome3d", "--source", ".", "--out", "set"), "data"),
        (("data", "prepare", "meshes", "--source", ".", "--out", "set"), "data"),
    ],
)
def test_a_missing_extra_is_one_sentence(arguments: tuple[str, ...], extra: str, tmp_path: Path) -> None:
    done = base_only(MAIN, tmp_path, *arguments)
    message = refusal(done.returncode, done.stdout, done.stderr)
    assert re.fullmatch(rf"\w+ is not installed; to install it: {re.escape(install(extra))}", message)


def test_the_base_install_distils_and_samples(tmp_path: Path) -> None:
    code = """
import fewstep
run = fewstep.distill("mdt-vd", "toy", out="run", train={"steps": 3})
print(run.student().sample(4).shape)
for needs_bench in (lambda: fewstep.bench("toy", students=[run]), lambda: run.student().save(*made, "samples.png")):
    prompts = run.student().prompts(4)
    made = run.student().sample(prompts), prompts
    try:
        needs_bench()
    except fewstep.FewstepError as error:
        print(error)
"""
    done = base_only(code, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch.Size([4, 2])" in done.stdout
    assert done.stdout.count(install("bench")) == 2


@pytest.mark.parametrize("command", ["--help", "plugins", "ops"])
def test_the_base_install_answers(command: str, tmp_path: Path) -> None:
    done = base_only(MAIN, tmp_path, command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ModuleNotFoundError" not in done.stdout


def test_a_package_of_no_extra_keeps_its_own_error() -> None:
    assert missing(ModuleNotFoundError("No module named 'fewstep_lost'", name="fewstep_lost")) is None
    with pytest.raises(ModuleNotFoundError, match="fewstep_lost"):
        need("fewstep_lost")


def test_a_missing_system_library_is_not_called_a_missing_package() -> None:
    lost = ImportError("libusb-1.0.so.0: cannot open shared object file", name="pybind")
    sentence = missing(lost, "open3d")
    assert isinstance(sentence, FewstepError)
    assert "libusb-1.0.so.0" in str(sentence)
    assert "apt install libusb-1.0-0" in str(sentence)
    assert "pip" not in str(sentence)
    lost = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    assert "apt install libgl1 " in str(missing(lost, "open3d"))
    assert "not installed" not in str(sentence)
