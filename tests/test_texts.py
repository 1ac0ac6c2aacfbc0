"""Text files that a user gives: any byte order mark, any line ends, and a message for what is no text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fewstep_trellis.checkpoint import read_config
from fewstep_trellis.normalisation import PIPELINE, Normalisation
from fewstep_trellis.official.files import read_frames
from fewstep_trellis.official.table import read_table
from fewstep_trellis.pipeline.spec import read_spec
from fewstep_trellis.shipped import NANO

from fewstep.benchmark.rows import read_rows
from fewstep.config.base import read_toml
from fewstep.engine.folder import started_with
from fewstep.errors import FewstepError
from fewstep.texts import read_json, read_text

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
ROWS = "label,steps,seed,metric,value\né,1,0,w2,0.5\n"


def test_marks_are_taken_off(tmp_path: Path) -> None:
    for encoding in (*ENCODINGS, "utf-16-be-mark"):
        text = "é = 1\n"
        content = b"\xfe\xff" + text.encode("utf-16-be") if encoding.endswith("mark") else text.encode(encoding)
        (tmp_path / "a").write_bytes(content)
        assert read_text(tmp_path / "a") == text


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with pytest.raises(FewstepError, match="a: cannot be read: No such file"):
        read_text(file)
    with pytest.raises(FewstepError, match="cannot be read: Is a directory"):
        read_text(tmp_path)
    file.write_bytes("é".encode("latin-1"))
    with pytest.raises(FewstepError, match=r"a: not text in UTF-8: byte 0 .*save it in UTF-8"):
        read_text(file)
    for text in ('{"a": ', "[" * 100000):
        file.write_text(text)
        with pytest.raises(FewstepError, match="a: truncated or not JSON"):
            read_json(file)


def frames(file: Path) -> Any:
    return read_frames(file.parent)[0]["file_path"]


def table(file: Path) -> Any:
    return read_table(file.parent)[0].cells["sha256"]


def normalisation(file: Path) -> Any:
    found = Normalisation.beside(file)
    return found is not None and found.mean


READERS: dict[str, tuple[str, str, Any, Any]] = {
    "toml": ("a.toml", "[train]\nsteps = 3\n", read_toml, {"train": {"steps": 3}}),
    "checkpoint": ("a.json", json.dumps({"name": "é", "args": {}}), read_config, ("é", {})),
    "run": ("config.json", '{"identity": {"é": 1}}', lambda file: started_with(file.parent), {"é": 1}),
    "rows": ("rows.csv", ROWS, lambda file: read_rows(file)[0].label, "é"),
    "frames": ("transforms.json", '{"frames": [{"file_path": "é.png"}]}', frames, "é.png"),
    "table": ("metadata.csv", "sha256\né\n", table, "é"),
    "normalisation": (PIPELINE, '{"args": {"slat_normalization": {"mean": [1], "std": [2]}}}', normalisation, (1.0,)),
    "pipeline": (PIPELINE, (NANO / PIPELINE).read_text(), lambda file: read_spec(file).kind, "image"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_reader_takes_every_mark_and_line_end(tmp_path: Path, reader: str, encoding: str, ends: str) -> None:
    name, text, read, expected = READERS[reader]
    (tmp_path / name).write_bytes(text.replace("\n", ends).encode(encoding))
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_what_is_no_text(tmp_path: Path, reader: str) -> None:
    name, text, read, _ = READERS[reader]
    (tmp_path / name).write_bytes(text.encode() + b"\xe9\xe8")
    with pytest.raises(FewstepError, match=r"not text in UTF-8|damaged, or not written by fewstep"):
        read(tmp_path / name)
