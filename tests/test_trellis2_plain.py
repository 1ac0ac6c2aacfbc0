"""TRELLIS.2 without CUDA, Triton or any compiled extension: flows, decoders, a dual grid, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("triton", "flash_attn", "flash_attn_interface", "xformers", "spconv", "torchsparse", "flex_gemm", "cumesh")
BLOCKED += ("nvdiffrast", "o_voxel")
SCRIPT = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in {BLOCKED!r} else find(name, *more)
import torch
from fewstep.core.layout import Packed
from fewstep_trellis2.mesh.voxelise import dual_grid_of
from fewstep_trellis2.models import MODELS
from fewstep_trellis2.vae.subdivision import guide_of

def refuse(*args, **named):
    raise AssertionError("CUDA was asked for")

torch.cuda.init = torch.cuda._lazy_init = refuse
blocks = {{"block_type": ["SparseConvNeXtBlock3d"] * 2, "num_blocks": [1, 1], "block_args": [{{}}, {{}}]}}
flow = {{"model_channels": 12, "cond_channels": 6, "num_blocks": 1, "num_heads": 2, "pe_mode": "rope"}}
flow |= {{"qk_rms_norm": True, "qk_rms_norm_cross": True, "share_mod": True, "out_channels": 4}}
corners = torch.tensor([[-0.3, -0.3, 0.01], [0.4, -0.2, 0.1], [0.0, 0.4, -0.1]])
grid = dual_grid_of(corners, torch.tensor([[0, 1, 2]]), 8)
encoder = MODELS["FlexiDualGridVaeEncoder"](
    **blocks, model_channels=[8, 16], latent_channels=4, down_block_type=["SparseResBlockS2C3d"]
)
z, _, layout = encoder.encode(grid.vertex, grid.intersected, grid.layout)
shape = MODELS["SLatFlowModel"](resolution=4, in_channels=4, **flow)
t, cond, ones = torch.ones(1), torch.ones(1, 2, 6), torch.ones_like(z)
_, change = torch.func.jvp(lambda x: shape(x, t, cond, layout), (z.detach(),), (ones,))
structure = MODELS["SparseStructureFlowModel"](resolution=2, in_channels=4, **flow)
structure(torch.ones(1, 4, 2, 2, 2), t, cond).sum().backward()
decoder = MODELS["FlexiDualGridVaeDecoder"](
    resolution=8, **blocks, model_channels=[16, 8], latent_channels=4, up_block_type=["SparseResBlockC2S3d"]
)
torch.nn.init.constant_(decoder.blocks[0][-1].to_subdiv.bias, 1.0)
(mesh,) = decoder.meshes(decoder(z, layout))
texture = MODELS["SparseUnetVaeDecoder"](
    6, [16, 8], 4, **blocks, up_block_type=["SparseResBlockC2S3d"], pred_subdiv=False
)
texture(z, layout, guide_of(layout, grid.layout, 1))
print("made", len(mesh.vertices), "vertices")
"""


def test_nothing_compiled_is_needed() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("made ")
