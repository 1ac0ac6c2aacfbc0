"""Makes a working tree count as installed: ``python -m benchmarks.gpu.installed FOLDER`` writes its metadata there.

fewstep finds plugins by the entry points of installed distributions. To Python, a folder on the path that contains a
``*.dist-info`` is one, so that nothing has to be built or fetched.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fewstep.config.base import read_toml

ROOT = Path(__file__).parents[2]


def write(folder: Path, root: Path = ROOT) -> Path:
    """The metadata folder of ``root``'s distribution, with the entry points of its pyproject.toml."""
    project = read_toml(root / "pyproject.toml")["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(about, encoding="utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return info


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
