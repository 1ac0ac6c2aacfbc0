"""Copy golden records without what a test does not need: ``trim.py FROM TO NAME... [--drop PREFIX...]``.

For example ``trim.py /work/shared/golden tests/golden/data models/slat_flow_a --drop mid. --keep mid.coords_torso``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

NOTES = ("state_keys", "notes", "mids")  # of no use to the runner


def trim(source: Path, target: Path, drop: tuple[str, ...], keep: tuple[str, ...]) -> int:
    """Copy one pair of files without the tensors that begin with ``drop`` and not with ``keep``; bytes written."""
    record = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))
    tensors = load_file(source.with_suffix(".safetensors"))
    kept = {name: x for name, x in tensors.items() if name.startswith(keep) or not name.startswith(drop)}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, target.with_suffix(".safetensors"))
    short = {key: value for key, value in record.items() if key not in NOTES}
    target.with_suffix(".json").write_text(json.dumps(short, indent=1) + "\n", encoding="utf-8")
    return sum(target.with_suffix(end).stat().st_size for end in (".json", ".safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy golden records without what a test does not need.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME", help="place below the folder, without suffix")
    parser.add_argument("--drop", nargs="*", default=[], metavar="PREFIX")
    parser.add_argument("--keep", nargs="*", default=[], metavar="PREFIX")
    given = parser.parse_args()
    for name in given.names:
        size = trim(given.source / name, given.target / name, tuple(given.drop), tuple(given.keep))
        print(f"{name}: {size} bytes")


if __name__ == "__main__":
    main()
