"""Commands whose names belong to the core: the backbone chooses who serves them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli, fake_plugin

from fewstep.api.generation import generate
from fewstep.cli.dispatch import asked
from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry, registry
from fewstep.plugins.shared import choose

HOOK = "from fewstep import hookimpl\n@hookimpl\ndef register_shared_commands(register):\n    "
SCENE = (
    "from typing import Annotated\nfrom typer import Option\n"
    "def generate(prompt: str, cameras: Annotated[int, Option(help='Number of cameras.')] = 3) -> None:\n"
    "    '''Make a scene.'''\n"
    "    print('scene', prompt, cameras)\n"
    "def prepare(folder: str) -> None:\n"
    "    '''Read scans.'''\n"
    "    print('scans of', folder)\n"
)
OFFER = HOOK + (
    "register('generate', 'scenes', target='scenes.commands:generate', summary='whole scenes')\n"
    "    register('data prepare', 'scans', target='scenes.commands:prepare', summary='laser scans')\n"
)


def second(site: Path, name: str = "fewstep-scenes", plugin: str = OFFER) -> Path:
    """A distribution with another backbone's ``generate``, whose options differ from TRELLIS's."""
    return fake_plugin(site, name, {"scenes/plugin.py": plugin, "scenes/__init__.py": "", "scenes/commands.py": SCENE})


def test_each_backbone_has_its_own_options(cli: Cli, site: Path) -> None:
    cli.paths.append(second(site))
    assert cli.works("generate", "--backbone", "scenes", "a street", "--cameras", "5") == "scene a street 5\n"
    assert cli.works("generate", "a street", "--backbone=scenes") == "scene a street 3\n"
    assert cli.works("generate", "-b", "scenes", "a street") == "scene a street 3\n"
    theirs = cli.works("generate", "--backbone", "scenes", "--help")
    assert "Number of cameras." in theirs
    assert "--low-memory" not in theirs
    for ours in (cli.works("generate", "--help"), cli.works("generate", "--backbone", "trellis", "--help")):
        assert "--low-memory" in ours
        assert "--cameras" not in ours
        assert "scenes, trellis" in ours
    assert "No such option: --low-memory" in cli.refuses("generate", "--backbone", "scenes", "x", "--low-memory")
    assert "there is nothing of this name" in cli.refuses("generate", "a street")  # TRELLIS, which we ship


def test_sources_are_prepared_by_their_kind(cli: Cli, site: Path) -> None:
    cli.paths.append(second(site))
    out = cli.works("data", "prepare", "--help")
    assert "laser scans" in out
    assert "sweethome3d" in out
    assert cli.works("data", "prepare", "scans", "here") == "scans of here\n"
    message = cli.refuses("data", "prepare", "scan", "here")
    kinds = "furniture, furniture-files, meshes, scans, sweethome3d"
    assert message == f"unknown kind of source 'scan': accepted are {kinds}; did you mean 'scans'?"


def test_a_second_backbone_is_no_clash_and_is_listed(cli: Cli, site: Path) -> None:
    cli.paths.append(second(site))
    out = cli.works("plugins")
    assert "commands: generate (scenes), data prepare (scans)" in out
    assert "clash" not in out
    assert "broken" not in out


def test_a_backbone_that_does_not_offer_a_command_is_told_who_does(cli: Cli, site: Path) -> None:
    cli.paths.append(second(site))
    message = cli.refuses("generate", "--backbone", "toy", "x")
    assert message == "--backbone: 'toy' does not offer `fewstep generate`; accepted: scenes, trellis, trellis2"
    assert "did you mean 'trellis'?" in cli.refuses("generate", "--backbone", "treliss", "--help")
    assert "unknown backbone 'scenes'" in cli.refuses("teach", "-b", "scenes")  # others are taught by anyone


def test_two_plugins_for_one_backbone_clash(cli: Cli, site: Path) -> None:
    cli.paths.append(second(site))
    fake_plugin(site, "fewstep-more", {"more.py": HOOK + "register('generate', 'scenes', target='more:x')\n"})
    text = "generate command 'scenes' is claimed by the plugins 'more' (distribution 'fewstep-more') and 'scenes'"
    assert text in cli.works("plugins")
    assert text in cli.refuses("generate", "--backbone", "scenes", "x")
    assert "--low-memory" in cli.works("generate", "--help")


def test_names_of_shared_commands_cannot_be_taken(cli: Cli, site: Path) -> None:
    text = (
        "from fewstep import hookimpl\n@hookimpl\ndef register_commands(app):\n"
        "    for name in ('generate', 'data'):\n        app.command(name)(lambda: print('taken over'))\n"
    )
    cli.paths.append(fake_plugin(site, "fewstep-thief", {"thief.py": text}))
    out = cli.works("plugins")
    for name in ("generate", "data"):
        assert f"clash: command {name!r} is claimed by 'fewstep' and 'thief'" in out
    assert "--low-memory" in cli.works("generate", "--help")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("register('generat', 'scenes', target='scenes.commands:generate')", "unknown shared command 'generat'"),
        ("register('generate', 'scenes', target='scenes.py')", "got 'scenes.py'; accepted: 'package.module:Name'"),
        ("register('generate', 'scenes', target='a:b', function='c')", "got 'c'; accepted: 'package.module:Name'"),
    ],
)
def test_a_wrong_registration_is_a_broken_plugin(line: str, reason: str, cli: Cli, site: Path) -> None:
    cli.paths.append(second(site, plugin=HOOK + line + "\n"))
    out = cli.works("plugins")
    assert "broken: plugin 'scenes'" in out
    assert reason in out


def test_the_option_is_found_among_arguments() -> None:
    assert asked([]) is None
    assert asked(["x", "--backbone", "a", "--steps", "1"]) == "a"
    assert asked(["--backbone=a", "--backbone=b"]) == "b"
    assert asked(["x", "--", "--backbone", "a"]) is None
    assert asked(["x", "--backbone"]) is None


def add(command: str, name: str, distribution: str) -> None:
    registry().add(Entry(f"{command} command", name, name, "nowhere:x", distribution=distribution))


def test_who_serves_a_command_when_nobody_is_named() -> None:
    for command in ("one", "several", "ours"):
        add(command, "theirs", "other")
    add("several", "more", "another")
    add("ours", "own", "fewstep")
    assert choose("one").name == "theirs"
    assert choose("ours").name == "own"
    with pytest.raises(FewstepError, match="several backbones offer `fewstep several`; accepted: --backbone with more"):
        choose("several")
    with pytest.raises(FewstepError, match="no installed plugin offers `fewstep none`"):
        choose("none")


def test_python_calls_the_same_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    add("generate", "echoes", "other")
    with pytest.raises(FewstepError, match="on the command line only"):
        generate("x", backbone="echoes")
    registry().add(Entry("generate function", "echoes", "echoes", "test_dispatch:echo", distribution="other"))
    assert generate("x", backbone="echoes", louder=True) == ("x", {"louder": True})


def echo(inputs: str, **options: object) -> object:
    return inputs, options
