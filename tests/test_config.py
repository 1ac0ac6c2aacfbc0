"""Configs: what is accepted, what an error says, what --help-config lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from fewstep.config.base import Strict, describe, merge, parse_override, read_toml, validate
from fewstep.config.describe import toml
from fewstep.config.train import TrainConfig
from fewstep.errors import FewstepError, nearest


class Inner(Strict):
    steps: int = Field(400, ge=1, le=1000, description="how many")
    rate: float = Field(0.5, gt=0, description="how fast")
    guidance: float | list[float] = 1.0
    clip: float | None = Field(None, gt=0)
    kind: Literal["uniform", "logit-normal"] = "uniform"
    ema: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.9,)
    interval: tuple[float, float] = (0.0, 1.0)
    flag: bool = False
    file: Path | None = Path("x")
    mode: Literal["none", "some"] = "some"

    @field_validator("steps")
    @classmethod
    def _even(cls, value: int) -> int:
        if value == 7:
            raise ValueError("anything but 7")
        return value


class Run(Strict):
    train: Inner = Field(default_factory=Inner)
    fixed: Inner = Inner(steps=5)
    maybe: Inner | None = None
    many: list[Inner] = Field(default_factory=list)
    weights: dict[str, float] = Field(default_factory=dict)
    seed: int

    @model_validator(mode="after")
    def _fits(self) -> Run:
        if self.seed == 13:
            raise ValueError("seed and train.steps do not fit each other")
        return self


def refused(**values: Any) -> str:
    with pytest.raises(FewstepError) as caught:
        validate(Run, {"seed": 0, **values})
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"seed": "x"}, "seed: got 'x'; accepted: an integer"),
        ({"seed": 1.5}, "seed: got 1.5; accepted: an integer"),
        ({"seed": True}, "seed: got True; accepted: an integer"),
        ({"train": {"steps": 0}}, "train.steps: got 0; accepted: an integer >= 1 and <= 1000"),
        ({"train": {"steps": {"a": 1}}}, "train.steps: got {'a': 1}; accepted: an integer >= 1 and <= 1000"),
        ({"train": {"steps": 7}}, "train.steps: got 7; accepted: anything but 7"),
        ({"train": {"rate": "fast"}}, "train.rate: got 'fast'; accepted: a number > 0"),
        ({"train": {"rate": float("inf")}}, "train.rate: got inf; accepted: a number > 0, finite"),
        ({"train": {"guidance": "x"}}, "train.guidance: got 'x'; accepted: a number or a list of numbers"),
        ({"train": {"guidance": [1, "x"]}}, "train.guidance: got [1, 'x']; accepted: a number or a list of numbers"),
        ({"train": {"clip": -1}}, "train.clip: got -1; accepted: a number > 0 or none"),
        ({"train": {"kind": "lognormal"}}, "accepted: 'uniform', 'logit-normal'; did you mean 'logit-normal'?"),
        ({"train": {"ema": 0.9}}, "train.ema: got 0.9; accepted: a list of numbers >= 0 and < 1"),
        ({"train": {"ema": [0.5, 2]}}, "train.ema: got [0.5, 2]; accepted: a list of numbers >= 0 and < 1"),
        ({"train": {"interval": [0.5]}}, "train.interval: got [0.5]; accepted: a list of 2 numbers"),
        ({"train": {"interval": [0, 1, 2]}}, "train.interval: got [0, 1, 2]; accepted: a list of 2 numbers"),
        ({"train": {"flag": "perhaps"}}, "train.flag: got 'perhaps'; accepted: true or false"),
        ({"train": {"rate": "none"}}, "train.rate: got 'none'; accepted: a number > 0"),
        ({"train": 3}, "train: got 3; accepted: a table (clip, ema, file, flag,"),
        ({"maybe": 3}, "maybe: got 3; accepted: a table ("),
        ({"weights": {"a": "x"}}, "weights: got {'a': 'x'}; accepted: a table of numbers"),
        ({"many": [{"steps": 0}]}, "many.0.steps: got 0; accepted: an integer >= 1 and <= 1000"),
        ({"seed": 13}, "seed and train.steps do not fit each other"),
    ],
)
def test_a_refused_value_is_explained_once(values: dict[str, Any], expected: str) -> None:
    text = refused(**values)
    assert expected in text
    assert "\n" not in text
    for jargon in ("Input should be", "valid ", "Value error", "unable to parse", "instance of"):
        assert jargon not in text


@pytest.mark.parametrize(
    ("values", "key", "hint"),
    [
        ({"sed": 1}, "'sed'", "did you mean 'seed'?"),
        ({"trian": {}}, "'trian'", "did you mean 'train'?"),
        ({"train": {"step": 1}}, "'train.step'", "did you mean 'train.steps'?"),
        ({"maybe": {"step": 1}}, "'maybe.step'", "did you mean 'maybe.steps'?"),
        ({"many": [{"step": 1}]}, "'many.0.step'", "did you mean 'many.0.steps'?"),
        ({"steps": 1}, "'steps'", "did you mean 'train.steps' or 'fixed.steps' or 'maybe.steps'?"),
        ({"train": {"seed": 1}}, "'train.seed'", "did you mean 'seed'?"),
        ({"intervall": 1}, "'intervall'", "did you mean 'maybe.interval'?"),
    ],
)
def test_an_unknown_key_names_the_nearest(values: dict[str, Any], key: str, hint: str) -> None:
    text = refused(**values)
    assert text.startswith(f"unknown key {key}: accepted ")
    assert text.endswith(hint)


def test_a_key_like_nothing_gets_no_hint() -> None:
    assert "did you mean" not in refused(qqqqqq=1)


def test_every_problem_is_named_in_one_error() -> None:
    text = refused(train={"steps": 0, "rate": "x", "knd": 1})
    assert [line.partition(":")[0] for line in text.splitlines()] == [
        "train.steps",
        "train.rate",
        "unknown key 'train.knd'",
    ]


def test_a_missing_key_says_what_it_takes() -> None:
    with pytest.raises(FewstepError, match=r"^seed: missing; accepted: an integer$"):
        validate(Run, {})


def test_none_is_a_word_where_a_key_takes_it_and_a_value_where_it_is_one() -> None:
    run = validate(Run, {"seed": 0, "train": {"file": "none", "clip": "none", "mode": "none"}})
    assert run.train.file is None
    assert run.train.clip is None
    assert run.train.mode == "none"


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        validate(Run, {"seed": 0}).seed = 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.steps=400", {"train": {"steps": 400}}),
        ("train.steps = 400", {"train": {"steps": 400}}),
        ("a=1e-4", {"a": 1e-4}),
        ("a=true", {"a": True}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ("a={b=1}", {"a": {"b": 1}}),
        ("a='x=y'", {"a": "x=y"}),
        ("a=logit-normal", {"a": "logit-normal"}),
        ("a=it's", {"a": "it's"}),
        ("a=/tmp/x y", {"a": "/tmp/x y"}),
        ("a=C:\\new", {"a": "C:\\new"}),
        ("a=2024-01-01", {"a": "2024-01-01"}),
        ('a=""', {"a": ""}),
        ("a=x=y", {"a": "x=y"}),
    ],
)
def test_overrides_are_toml_or_bare_words(text: str, expected: dict[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["steps", "=3", "", "a=", "a b=3", "a.=3", "a=[1, 2", "a='x", "a=1\nb=2", "[a]\nb=3"])
def test_malformed_overrides_are_quoted_back(text: str) -> None:
    with pytest.raises(FewstepError, match=r"^override ") as caught:
        parse_override(text)
    assert repr(text) in str(caught.value)


def test_later_layers_win_key_by_key() -> None:
    layers = ({"a": {"b": 1, "c": 1}, "d": 1}, {"a": {"b": 2}}, {"d": {"e": 3}})
    assert merge(*layers) == {"a": {"b": 2, "c": 1}, "d": {"e": 3}}


def test_a_config_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match="No such file"):
        read_toml(tmp_path / "x.toml")
    with pytest.raises(FewstepError, match="accepted: a TOML file"):
        read_toml(tmp_path)
    (tmp_path / "bad.toml").write_text("[train]\nsteps = = 3\n")
    with pytest.raises(FewstepError, match=r"is not valid TOML.*line 2"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FewstepError, match=r"binary.toml: not text in UTF-16.*save it in UTF-8; accepted: a TOML file"):
        read_toml(tmp_path / "binary.toml")


def test_every_key_is_described() -> None:
    rows = {row.key: row for row in describe(Run)}
    assert rows["train.steps"] == ("train.steps", "an integer >= 1 and <= 1000", "400", "how many")
    assert rows["train.kind"].accepted == "'uniform', 'logit-normal'"
    assert rows["train.ema"][1:3] == ("a list of numbers >= 0 and < 1", "[0.9]")
    assert rows["train.clip"][1:3] == ("a number > 0 or none", "none")
    assert rows["fixed.steps"].default == "5"  # of the instance, not of its class
    assert rows["maybe"].default == "none"
    assert rows["maybe.steps"].default == "400"
    assert rows["many"].accepted.startswith("a list of tables (clip")
    assert rows["seed"].default == "required"
    assert {"train", "fixed"}.isdisjoint(rows)


@pytest.mark.parametrize(
    "value", [True, False, 3, 0.5, "word", "two words", "", "3", "true", " x", "[x", [1, 2], ["a", "b"], [[1], [2]]]
)
def test_a_shown_value_can_be_typed(value: Any) -> None:
    assert parse_override(f"a={toml(value)}") == {"a": value}


def test_nearest_knows_when_nothing_is_near() -> None:
    assert nearest("mdt-vdd", ["mdt-vd", "cm"]) == "mdt-vd"
    assert nearest("zzz", ["mdt-vd", "cm"]) is None


@pytest.mark.parametrize("values", [{"ema": [False]}, {"ema": [0.5, True]}, {"betas": [True, 0.9]}, {"steps": True}])
def test_true_and_false_are_no_numbers_also_in_lists(values: dict[str, Any]) -> None:
    with pytest.raises(FewstepError, match=f"{next(iter(values))}: got"):
        validate(TrainConfig, values)


class Flags(Strict):
    flags: tuple[bool, ...] = ()
    both: tuple[float | bool, ...] = ()


def test_lists_of_true_and_false_are_accepted_where_they_belong() -> None:
    assert validate(Flags, {"flags": [True], "both": [False, 0.5]}).flags == (True,)
