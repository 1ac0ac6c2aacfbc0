"""What other programs say of our .glb files: gltf-validator, three.js's GLTFLoader in Chromium, Blender's importer.

npm fetches the first two. Blender is PyPI's bpy, in this Python or in that of ``BPY_PYTHON``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, Browser
from fewstep_shapes3d.export import write_glb
from fewstep_shapes3d.export.glb import glb
from fewstep_shapes3d.finish import Finish
from fewstep_shapes3d.finish.finish import finished
from fewstep_shapes3d.representations import Mesh
from fewstep_trellis.generate.api import generate
from test_finish import sphere

pytestmark = pytest.mark.slow
CHAIR = Path(__file__).parent.parent / "docs/pictures/chair.png"
PACKAGES = ("gltf-validator@2.0.0-dev.3.10", "three@0.187.0")

VALIDATE = """
const {validateBytes} = require('gltf-validator'), fs = require('fs');
(async () => {
  const found = [];
  for (const path of process.argv.slice(1)) {
    const {issues} = await validateBytes(new Uint8Array(fs.readFileSync(path)));
    found.push(...issues.messages.filter((issue) => issue.severity < 2).map((issue) => `${path}: ${issue.message}`));
  }
  console.log(JSON.stringify(found));
})();
"""

PAGE = """<!doctype html>
<script type="importmap">{"imports": {"three": "./node_modules/three/build/three.module.js"}}</script>
<script type="module">
  import {Box3, REVISION, Vector3} from "three";
  import {GLTFLoader} from "./node_modules/three/examples/jsm/loaders/GLTFLoader.js";
  const said = [], found = {};
  for (const name of ["warn", "error"]) console[name] = (...words) => said.push(words.join(" "));
  try {
    for (const file of FILES) {
      const {scene} = await new GLTFLoader().loadAsync(file);
      const seen = found[file] = {size: new Box3().setFromObject(scene).getSize(new Vector3()).toArray()};
      scene.traverse((node) => {
        if (!node.isMesh) return;
        seen.faces = node.geometry.index.count / 3;
        seen.colours = node.material.vertexColors;
        seen.texture = node.material.map && node.material.map.image.width;
      });
    }
  } catch (error) { said.push(String(error)); }
  window.told = [REVISION, said, found];
</script>
"""

BLENDER = """
import json, logging, sys
import bpy
said, found = [], {}
class Heard(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger().addHandler(Heard(logging.WARNING))
for path in sys.argv[1:]:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=path)
    (one,) = [each for each in bpy.data.objects if each.type == "MESH"]
    if one.data.validate():
        said.append(path + ": had to be corrected")
    images = [image.size[0] for image in bpy.data.images]
    found[path] = {"size": list(one.dimensions), "faces": len(one.data.polygons), "images": images,
                   "colours": len(one.data.color_attributes)}
print("said:" + json.dumps([bpy.app.version_string, said, found]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every kind of .glb file: made ones, the page of a bench's, and what ``generate`` writes."""
    place = tmp_path_factory.mktemp("importers")
    mesh = sphere(2)
    apart = torch.tensor([[0.1, 0.2, 0.3]])  # a vertex that no face has, as TRELLIS.2's grid leaves them
    glass = Mesh(mesh.vertices, mesh.faces, mesh.vertex_attrs, material=torch.full((len(mesh.vertices), 3), 0.5))
    made = {
        "plain": mesh,
        "bare": Mesh(torch.cat([mesh.vertices, apart]), mesh.faces),
        "glass": glass,
        "painted": finished(sphere(), Finish(simplify=0.8, texture=256)),
        "glass-painted": finished(glass, Finish(texture=128)),
        "half": finished(mesh, Finish(simplify=0.5)),
    }
    for name, one in made.items():
        write_glb(one, place / f"{name}.glb")
    (place / "page.glb").write_bytes(glb(mesh, normals=False))
    for name, options in {"chair": {}, "chair-finished": {"simplify": 0.9, "texture": 1024, "size": 0.9}}.items():
        generate(str(CHAIR), steps=1, device="cpu", **options).save(place / f"{name}.glb")
    return place


@pytest.fixture(scope="module")
def packages(folder: Path) -> Path:
    """The folder with the packages of npm in it."""
    if not shutil.which("npm"):
        pytest.skip("needs node and npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
    if subprocess.run(command, capture_output=True, check=False, timeout=240).returncode:
        pytest.skip("needs the npm registry")
    return folder


@pytest.fixture
def address(packages: Path) -> Iterator[str]:
    """Where a server shows the folder: a browser loads no module from a file."""
    files = sorted(path.name for path in packages.glob("*.glb"))
    (packages / "index.html").write_text(PAGE.replace("FILES", json.dumps(files)))
    handler = partial(SimpleHTTPRequestHandler, directory=str(packages))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


def test_the_official_validator_has_no_complaint(packages: Path) -> None:
    paths = sorted(map(str, packages.glob("*.glb")))
    done = subprocess.run(["node", "-e", VALIDATE, *paths], cwd=packages, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_three_loads_them_without_a_warning(address: str, folder: Path, tmp_path: Path) -> None:
    with Browser(address, tmp_path / "profile", (900, 700)) as browser:
        revision, said, found = browser.run("await until(() => window.told); return told;")
    assert browser.errors == []
    assert (revision, said) == ("187", [])
    check(found, folder, height=1)
    assert (found["chair.glb"]["colours"], found["chair.glb"]["texture"]) == (True, None)
    assert found["chair-finished.glb"]["texture"] == 1024


def test_blender_imports_them_without_a_warning(folder: Path) -> None:
    python = os.environ.get("BPY_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import bpy"], capture_output=True, check=False).returncode:
        pytest.skip("needs bpy")
    paths = sorted(map(str, folder.glob("*.glb")))
    done = subprocess.run([python, "-c", BLENDER, *paths], capture_output=True, text=True, check=True, timeout=240)
    _, said, found = json.loads(done.stdout.partition("said:")[2])
    assert said == []
    assert not re.search("warning|error", done.stdout + done.stderr, re.IGNORECASE)
    found = {Path(path).name: seen for path, seen in found.items()}
    check(found, folder, height=2)
    assert (found["chair.glb"]["colours"], found["chair.glb"]["images"]) == (1, [])
    assert (found["chair-finished.glb"]["colours"], found["chair-finished.glb"]["images"]) == (0, [1024])


def check(found: dict[str, Any], folder: Path, height: int) -> None:
    """All files are there, and the chair stands on its legs: what is tall is the program's vertical axis."""
    assert found.keys() == {path.name for path in folder.glob("*.glb")}
    for name in ("chair.glb", "chair-finished.glb"):
        size = found[name]["size"]
        assert size.index(max(size)) == height
    assert max(found["chair-finished.glb"]["size"]) == pytest.approx(0.9, abs=1e-4)
    assert found["page.glb"]["faces"] == found["plain.glb"]["faces"] == 320
