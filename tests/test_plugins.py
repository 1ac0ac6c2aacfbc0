"""A third party's plugin works as ours do; a broken or clashing one is reported and hurts nobody else."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli, fake_plugin

from fewstep import metrics
from fewstep.cli import main
from fewstep.cli.app import build
from fewstep.plugins.registry import Registry, registry

EXAMPLE = Path(__file__).parent.parent / "plugins" / "example-huber"
OBJECTIVE = "from fewstep import hookimpl\n@hookimpl\ndef register_objectives(register):\n    "
COMMAND = "from fewstep import hookimpl\n@hookimpl\ndef register_commands(app):\n    "


# One that works: the sample distribution, installed by pip.


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample distribution, built and installed without a network."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build"))
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(folder / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def code_lines(path: Path) -> int:
    """Lines of code, without blank ones, comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    kept = {line for node in ast.walk(tree) for line in _span(node)}
    return len(kept)


def _span(node: ast.AST) -> range:
    return range(getattr(node, "lineno", 0), getattr(node, "end_lineno", -1) + 1)


def test_the_sample_is_short() -> None:
    files = list(EXAMPLE.rglob("fewstep_huber/*.py"))
    assert len(files) == 3
    assert sum(code_lines(path) for path in files) <= 40


def test_the_sample_is_a_method_like_any_other(installed: Path, cli: Cli) -> None:
    assert "huber" not in cli.works("plugins")
    cli.paths.append(installed)
    out = cli.works("plugins")
    (line,) = [line for line in out.splitlines() if "fewstep-huber" in line]
    assert line.strip("│ ").split("│")[0].strip() == "huber"
    assert "0.1.0" in line
    assert "methods: huber" in line

    keys = cli.works("distill", "--method", "huber", "--backbone", "toy", "--help-config")
    assert "errors below c count as squares" in keys
    assert "a number > 0" in keys

    quick = ("train.steps=12", "train.batch_size=32", "backbone.pretrain=20", "backbone.width=16")
    distill = ("distill", "--method", "huber", "--backbone", "toy", "--out", "run", *quick)
    assert "objective.c: got -1; accepted: a number > 0" in cli.refuses(*distill, "objective.c=-1")
    assert not (cli.folder / "run").exists()
    assert "student: run/student" in cli.works(*distill, "objective.c=0.2")

    bench = ("--limit", "64", "--seeds", "0", "--steps", "1", "backbone.pretrain=20", "backbone.width=16")
    table = cli.works("bench", "--backbone", "toy", "--student", "mine=run", "--out", "report", *bench)
    assert "mine" in table
    assert "undistilled" in table
    assert (cli.folder / "report" / "chart.png").stat().st_size > 0

    assert "8 samples, 1 step, euler: " in cli.works("sample", "run", "--out", "samples.png")
    assert (cli.folder / "samples.png").stat().st_size > 0


def test_a_students_method_need_not_be_installed_to_sample(installed: Path, cli: Cli) -> None:
    quick = ("train.steps=2", "train.batch_size=8", "backbone.pretrain=2", "backbone.width=8")
    cli.paths.append(installed)
    cli.works("distill", "--method", "huber", "--backbone", "toy", "--out", "run", *quick)
    cli.paths.clear()
    assert "8 samples" in cli.works("sample", "run", "--out", "samples.png")


# Those that do not.


BROKEN = {
    "raises": ("raise RuntimeError('no licence key')", "RuntimeError: no licence key"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "syntax": ("def f(:\n", "SyntaxError: "),
    "imports": ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
    "misspelt": (OBJECTIVE.replace("objectives", "objective") + "pass", "unknown hook 'register_objective'"),
    "unmarked": ("def register_objectives(register):\n    pass", "is not marked: write @fewstep.hookimpl"),
    "argument": (OBJECTIVE.replace("(register)", "(registry)") + "pass", "Argument(s) {'registry'} are declared"),
    "no-target": (OBJECTIVE + "register('lone')", "TypeError: "),
    "bad-target": (OBJECTIVE + "register('lone', target='lone.py')", "got 'lone.py'; accepted: 'package.module:Name'"),
    "half-way": (OBJECTIVE + "register('lone', target='lone:X')\n    1 / 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_reported_and_left_out(name: str, cli: Cli, site: Path) -> None:
    text, reason = BROKEN[name]
    cli.paths += [fake_plugin(site, f"fewstep-{name}", {f"plugin_{name.replace('-', '_')}.py": text})]
    out = cli.works("plugins")
    assert f"broken: plugin '{name}': " in out
    assert reason in out
    assert "methods: mdt-vd, mdt-vm" in out
    assert "lone" not in "".join(line for line in out.splitlines() if "methods:" in line)


def test_help_works_beside_all_broken_plugins_and_a_wrong_name_mentions_them(cli: Cli, site: Path) -> None:
    for name, (text, _) in BROKEN.items():
        fake_plugin(site, f"fewstep-{name}", {f"plugin_{name.replace('-', '_')}.py": text})
    cli.paths.append(site)
    done = cli("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "distill" in done.stdout
    message = cli.refuses("distill", "--method", "lone", "--backbone", "toy")
    assert message.startswith("unknown method 'lone': accepted are ")
    assert "plugin 'raises' did not load: RuntimeError: no licence key" in message
    assert "resolved config" in cli.works("distill", "--method", "mdt-vm", "--backbone", "toy", "--dry-run")


COMMANDS = {
    "raises": (COMMAND + "app.command('first')(lambda: None)\n    raise RuntimeError('late')", "RuntimeError: late"),
    "exits": (COMMAND + "raise SystemExit(1)", "SystemExit: 1"),
    "signature": (COMMAND + "@app.command()\n    def first(x: 'NoSuchType'): pass", "NameError: "),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_broken_commands_take_nothing_else_with_them(name: str, cli: Cli, site: Path) -> None:
    text, reason = COMMANDS[name]
    good = OBJECTIVE + "register('kept', target='kept:X')\n"
    cli.paths.append(fake_plugin(site, f"fewstep-{name}", {f"plugin_{name}.py": good + text}))
    out = cli.works("plugins")
    assert f"broken: plugin '{name}': its commands are left out: {reason}" in out
    assert "methods: kept" in out
    assert "first" not in cli.works("--help")


def test_a_name_that_two_plugins_claim_is_an_error_for_who_asks(cli: Cli, site: Path) -> None:
    for who in ("one", "two"):
        text = OBJECTIVE + "register('same', target='nowhere:X', aliases=('mdt-vm',))\n"
        text += OBJECTIVE.replace("objectives", "datasets") + f"register('data-{who}', target='nowhere:X')\n"
        text += COMMAND + "app.command('greet')(lambda: print('hi'))\n"
        text += "    app.command('plugins')(lambda: print('taken over'))\n"
        fake_plugin(site, f"fewstep-{who}", {f"plugin_{who}.py": text})
    cli.paths.append(site)
    owners = "is claimed by the plugins 'one' (distribution 'fewstep-one') and 'two' (distribution 'fewstep-two')"
    out = cli.works("plugins")
    assert f"clash: method 'same' {owners}" in out
    assert "clash: method 'mdt-vm' is claimed by the plugins 'mdt' (distribution 'fewstep') and 'one'" in out
    assert "clash: command 'greet' is claimed by 'one' and 'two'" in out
    assert "clash: command 'plugins' is claimed by 'fewstep' and 'one'" in out
    assert "taken over" not in out

    choice = ("--backbone", "toy", "--dry-run")
    assert f"method 'same' {owners}: uninstall one of them" in cli.refuses("distill", "--method", "same", *choice)
    assert "command 'greet' is claimed by 'one' and 'two'" in cli.refuses("greet", "--loud", "x")
    assert "resolved config" in cli.works("distill", "--method", "mdt-vd", *choice)
    assert cli("--help").returncode == 0


def test_what_a_backbone_lacks_is_named_on_both_sides(cli: Cli, site: Path) -> None:
    method = (
        "from fewstep.config.base import Strict\nfrom fewstep.core.objective import Objective\n"
        "class Much(Objective):\n    Config = Strict\n    needs = frozenset({'glances', 'jvp'})\n"
        "    def loss(self, batch, nets, step): return {}\n"
    )
    text = OBJECTIVE + "register('much', target='much.method:Much')\n"
    cli.paths.append(fake_plugin(site, "fewstep-much", {"much/plugin.py": text, "much/method.py": method}))
    for dry in ([], ["--dry-run"]):
        message = cli.refuses("distill", "--method", "much", "--backbone", "toy", "--out", "run", *dry)
        assert "method 'much' needs 'glances', which backbone 'toy' does not provide" in message
        assert "it provides dense, features, guidance_input, jvp, negative_time, packed, policy, two_time" in message
    assert not (cli.folder / "run").exists()


def test_a_target_that_cannot_be_loaded_names_its_plugin(cli: Cli, site: Path) -> None:
    for name, module in {"gone": "", "rotten": "raise SystemExit(0)"}.items():
        text = OBJECTIVE + f"register('{name}', target='{name}.method:X')\n"
        fake_plugin(site, f"fewstep-{name}", {f"{name}/plugin.py": text, f"{name}/method.py": module})
    cli.paths.append(site)
    for name, reason in {"gone": "AttributeError: module", "rotten": "SystemExit: 0"}.items():
        message = cli.refuses("distill", "--method", name, "--backbone", "toy", "--dry-run")
        assert message.startswith(f"method '{name}' of plugin '{name}' (distribution 'fewstep-{name}') cannot be ")
        assert f"loaded from '{name}.method:X': {reason}" in message


def test_a_distribution_without_metadata_is_no_obstacle(cli: Cli, site: Path) -> None:
    fake_plugin(site, "fewstep-bare", {"bare_plugin.py": OBJECTIVE + "register('bare', target='bare:X')\n"})
    (site / "fewstep_bare-1.0.dist-info" / "METADATA").write_text("")
    cli.paths.append(site)
    assert "methods: bare" in cli.works("plugins")


def test_an_interrupt_while_loading_is_no_broken_plugin(cli: Cli, site: Path) -> None:
    cli.paths.append(fake_plugin(site, "fewstep-stop", {"plugin_stop.py": "raise KeyboardInterrupt\n"}))
    assert cli("plugins").returncode == 130


def test_names_that_clash_are_not_offered() -> None:
    from fewstep.plugins.registry import Entry

    found = Registry()
    for plugin in ("a", "b"):
        found.add(Entry("sampler", "twice", plugin, "x:y"))
    found.add(Entry("sampler", "once", "a", "x:y", aliases=("once", "uno")))
    assert found.names("sampler") == ["once", "uno"]
    assert [entry.name for entry in found.entries("sampler")] == ["once", "twice", "twice"]


def test_our_own_commands_come_first_in_the_help() -> None:
    assert list(build().commands)[:5] == ["distill", "bench", "sample", "push", "plugins"]
    assert registry().command_clashes == []


PRINTING = "print('printed at import')\n" + OBJECTIVE + "print('printed at registration')\n"
BUG = (
    "print('printed on use')\nfrom fewstep.config.base import Strict\nfrom fewstep.core.objective import Objective\n"
    "class Bug(Objective):\n    Config = Strict\n    def loss(self, batch, nets, step):\n"
    "        return {'a': nets.student.no_such_thing}\n"
)


def test_what_a_plugin_prints_when_it_loads_leaves_the_output_alone(cli: Cli, site: Path) -> None:
    text = PRINTING + "    register('bug', target='bug.method:Bug')\n" + COMMAND + "print('printed for commands')\n"
    cli.paths.append(fake_plugin(site, "fewstep-bug", {"bug/plugin.py": text, "bug/method.py": BUG}))
    done = cli("ops", "--json")
    assert json.loads(done.stdout)
    assert done.stderr.splitlines()[:2] == ["printed at import", "printed at registration"]
    assert "printed" not in cli.works("distill", "-m", "bug", "-b", "toy", "--dry-run")


def test_an_error_in_an_authors_code_shows_the_authors_line(cli: Cli, site: Path) -> None:
    text = OBJECTIVE + "register('bug', target='bug.method:Bug')\n"
    cli.paths.append(fake_plugin(site, "fewstep-bug", {"bug/plugin.py": text, "bug/method.py": BUG}))
    quick = ("train.steps=1", "train.batch_size=2", "backbone.pretrain=2", "backbone.width=8")
    done = cli("distill", "-m", "bug", "-b", "toy", "--out", "run", *quick)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "return {'a': nets.student.no_such_thing}" in map(str.strip, lines)
    assert not re.search(r"[/\\](typer|click)[/\\]", done.stderr)
    error, place = lines[-2:] if sys.version_info >= (3, 11) else (lines[-1], "")
    assert error == "AttributeError: 'ToyFlow' object has no attribute 'no_such_thing'"
    wanted = f"raised in plugin 'bug': {site / 'bug' / 'method.py'}, line 7, in loss"
    assert place == (wanted if sys.version_info >= (3, 11) else "")  # exceptions take notes since Python 3.11


def test_what_there_is_and_where_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for name in ("students", "presets", "samplers", "metrics", "trackers", "plugins"):
        assert main([name]) == 0
        rows = capsys.readouterr().out.splitlines()
        shown[name] = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows if row.startswith("│")]
    assert ["euler", "core", "first order along the velocity"] in shown["samplers"]
    assert ["tensorboard", "plugin trackers"] in [row[:2] for row in shown["trackers"]]
    assert {("mdt-dist", "mdt-vd", "slat"), ("mdt-dist", "any", "slat"), ("default", "any", "any")} <= {
        tuple(row[:3]) for row in shown["presets"]
    }
    student = next(row for row in shown["students"] if row[0] == "trellis/mdt-vd")
    assert student[1:5] == ["mdt-vd", "1, 2, 4", "consistency", "1"]
    assert student[-1] == "plugin trellis"
    core = next(row for row in shown["plugins"] if row[0] == "(core)")
    assert core[3] == "samplers: consistency, euler, gamma, heun, jump"
    assert ["kid", "core", "kernel Inception distance, unbiased"] in shown["metrics"]
    for kind in ("samplers", "metrics", "trackers"):
        assert [row for row in shown[kind] if row not in shown["plugins"]] == []
    assert {row[0] for row in shown["metrics"]} >= set(metrics.__all__)
