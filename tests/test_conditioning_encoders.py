"""DINOv2 and CLIP: tokens against formulas written here, weights in each layout, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_trellis.conditioning.clip import ClipConditioner
from fewstep_trellis.conditioning.dino import DinoConditioner, Interpolation
from fewstep_trellis.conditioning.factory import image_conditioner, text_conditioner
from golden.run import main
from PIL import Image
from safetensors.torch import load_file, save_file
from test_golden import copy, nudge
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import FewstepError

DATA = Path(__file__).parent / "golden" / "data"
WIDTH, HEADS, PATCH, GRID, REGISTERS, DEPTH = 128, 2, 14, 3, 4, 2
State = dict[str, Tensor]


def test_recorded_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DATA), "--only", "dino/"]) == 0, capsys.readouterr().out
    assert "6 cases" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "key", "by"),
    [
        ("vit_reg_a", "state.blocks.1.attn.qkv.bias", 0.5),
        ("vit_reg_a", "state.register_tokens", 0.5),
        ("vit_reg_a", "state.pos_embed", 0.5),
        ("vit_reg_a", "rect.cond", 1e-3),
        ("clip_text_a", "output.last_hidden_state", 1e-3),
        ("clip_text_a", "state.text_model.final_layer_norm.weight", 1e-2),
    ],
)
def test_a_wrong_number_is_seen(
    tmp_path: Path, name: str, key: str, by: float, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(tmp_path, f"dino/{name}")
    nudge(root / f"dino/{name}.safetensors", key, by)
    assert main([str(root)]) == 1, capsys.readouterr().out


def original(swiglu: bool = False, registers: int = REGISTERS) -> State:
    """Random weights in DINOv2's own layout."""
    generator, c, h = torch.Generator().manual_seed(0), WIDTH, 344 if swiglu else 4 * WIDTH
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, c), "pos_embed": (1, 1 + GRID**2, c)}
    shapes |= {"mask_token": (1, c), "patch_embed.proj.weight": (c, 3, PATCH, PATCH), "patch_embed.proj.bias": (c,)}
    shapes |= {"norm.weight": (c,), "norm.bias": (c,)} | ({"register_tokens": (1, registers, c)} if registers else {})
    mlp = {"w12": (2 * h, c), "w3": (c, h)} if swiglu else {"fc1": (h, c), "fc2": (c, h)}
    for i in range(DEPTH):
        matrices = {"attn.qkv": (3 * c, c), "attn.proj": (c, c)} | {f"mlp.{k}": v for k, v in mlp.items()}
        for name, shape in matrices.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.{k}": (c,) for k in ("ls1.gamma", "ls2.gamma")}
        shapes |= {f"blocks.{i}.{n}.{p}": (c,) for n in ("norm1", "norm2") for p in ("weight", "bias")}
    return {k: torch.randn(s, generator=generator) / math.sqrt(math.prod(s[1:]) or 1) for k, s in shapes.items()}


def block(state: State, i: int, x: Tensor) -> Tensor:
    """One block from dino/facts.json, attention written out."""
    w = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items() if k.startswith(f"blocks.{i}.")}

    def norm(x: Tensor, name: str) -> Tensor:
        deviation = (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return (x - x.mean(-1, keepdim=True)) / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    b, n, c = x.shape
    q, k, v = linear(norm(x, "norm1"), "attn.qkv").view(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / math.sqrt(c // HEADS)).softmax(-1)
    x = x + w["ls1.gamma"] * linear((weights @ v).transpose(1, 2).reshape(b, n, c), "attn.proj")
    h = norm(x, "norm2")
    if "mlp.w12.weight" in w:
        gate, value = linear(h, "mlp.w12").chunk(2, -1)
        return x + w["ls2.gamma"] * linear(gate * gate.sigmoid() * value, "mlp.w3")
    h = linear(h, "mlp.fc1")
    return x + w["ls2.gamma"] * linear(h * (1 + torch.erf(h / math.sqrt(2))) / 2, "mlp.fc2")


def expected(state: State, images: Tensor) -> Tensor:
    """Tokens of pictures at the table's own size."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    patches = F.conv2d((images - mean) / std, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], PATCH)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches.flatten(2).mT], 1) + state["pos_embed"]
    if "register_tokens" in state:
        x = torch.cat([x[:, :1], state["register_tokens"].expand(len(images), -1, -1), x[:, 1:]], 1)
    for i in range(DEPTH):
        x = block(state, i, x)
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (42, 42, 3), np.uint8)) for _ in range(5)]


def as_tensor(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.asarray(image).astype(np.float32) / 255) for image in images]).permute(
        0, 3, 1, 2
    )


@pytest.mark.parametrize(("swiglu", "registers"), [(False, 4), (True, 4), (False, 0)])
def test_original_weights_give_the_tokens_of_the_formula(tmp_path: Path, swiglu: bool, registers: int) -> None:
    state = original(swiglu, registers)
    save_file(state, tmp_path / "dino.safetensors")
    encoder = image_conditioner(tmp_path / "dino.safetensors")
    tokens, wanted = encoder.encode(pictures()), expected(state, as_tensor(pictures()))
    assert tokens.shape == (5, 1 + registers + GRID**2, WIDTH)
    assert encoder.channels == WIDTH
    assert torch.allclose(tokens, wanted, rtol=0, atol=2e-5)
    assert encoder.negative(2) is None


def test_every_layout_gives_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .pth with wrappers' prefix, a folder with one file, transformers' folder, the file that torch.hub keeps."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("fewstep_trellis.conditioning.factory.get_dir", lambda: str(tmp_path))
    one, folder, kept = tmp_path / "one", tmp_path / "folder", tmp_path / "checkpoints"
    one.mkdir()
    kept.mkdir()
    torch.save(original(), kept / "dinov2_vitl14_reg4_pretrain.pth")
    torch.save({"model": {f"module.{k}": v for k, v in original().items()}}, one / "weights.pth")
    with pytest.warns(UserWarning, match=r"removed the prefix 'module\.'"):
        first = DinoConditioner.from_original(one / "weights.pth")
    first.model.save_pretrained(folder)
    tokens = first.encode(pictures()[:1])
    for name in (folder, "dinov2_vitl14_reg", kept):
        assert torch.equal(image_conditioner(name).encode(pictures()[:1]), tokens), name
    torch.save(original(), kept / "other.pth")
    with pytest.raises(FewstepError, match="2 such files"):
        image_conditioner(kept)


def test_the_tokens_can_be_trained_on(tmp_path: Path) -> None:
    save_file(original(), tmp_path / "dino.safetensors")
    tokens = image_conditioner(tmp_path / "dino.safetensors").encode(pictures()[:1])
    weight = torch.ones(WIDTH, requires_grad=True)
    (tokens * weight).sum().backward()
    assert weight.grad is not None


def test_another_size_is_resized_and_prepared(tmp_path: Path) -> None:
    save_file(original(), tmp_path / "dino.safetensors")
    encoder = image_conditioner(tmp_path / "dino.safetensors")
    big = pictures()[0].resize((90, 60))
    sized = big.resize((42, 42), Image.Resampling.LANCZOS)
    assert torch.equal(encoder.encode([big]), encoder.encode([sized]))
    rgba = pictures()[0].convert("RGBA")
    rgba.putpixel((0, 0), (0, 0, 0, 0))
    assert encoder.prepare(rgba).size == (42, 42)
    with pytest.raises(FewstepError, match="sides that are multiples of 14"):
        encoder(torch.zeros(1, 3, 42, 43))


def test_interpolation_of_a_model_without_registers_is_the_released_one() -> None:
    assert Interpolation.released(0) == Interpolation(antialias=False, offset=0.1)
    assert Interpolation.released(4) == Interpolation(antialias=True, offset=0.0)


def test_keys_that_do_not_fit_are_listed_in_one_error(tmp_path: Path) -> None:
    state = original()
    del state["blocks.0.ls1.gamma"], state["norm.bias"]
    state["head.weight"], state["cls_token"] = torch.zeros(3), torch.zeros(1, 1, 7)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(FewstepError) as caught:
        image_conditioner(tmp_path / "wrong.safetensors")
    text = str(caught.value)
    assert "2 missing: norm.bias, blocks.0.ls1.gamma" in text
    assert "1 unknown: head.weight" in text
    assert "1 wrong shape: cls_token [1, 1, 7] instead of [1, 1, 128]" in text


def test_weights_of_something_else(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(FewstepError, match=r"other\.safetensors.*patch_embed\.proj\.weight"):
        image_conditioner(tmp_path / "other.safetensors")
    state = original() | {"pos_embed": torch.zeros(1, 12, WIDTH)}
    save_file(state, tmp_path / "oblong.safetensors")
    with pytest.raises(FewstepError, match=r"12 positions.*square"):
        image_conditioner(tmp_path / "oblong.safetensors")


def test_a_damaged_folder_is_one_error(tmp_path: Path) -> None:
    save_file(original(), tmp_path / "dino.safetensors")
    good = DinoConditioner.from_original(tmp_path / "dino.safetensors")
    good.model.save_pretrained(tmp_path / "folder")
    weights = tmp_path / "folder/model.safetensors"
    state = load_file(weights)
    del state["layernorm.weight"]
    save_file({**state, "surplus": torch.zeros(2)}, weights, metadata={"format": "pt"})
    with pytest.raises(FewstepError, match=r"folder does not fit Dinov2W.*1 missing: layernorm\.weight; 1 unknown: s"):
        image_conditioner(tmp_path / "folder")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FewstepError, match=r"--image-encoder: got '.*folder'; accepted: config.json and complete"):
        image_conditioner(tmp_path / "folder")
    weights.unlink()
    with pytest.raises(FewstepError, match=r"--image-encoder: got '.*folder'"):
        image_conditioner(tmp_path / "folder")
    (tmp_path / "folder/config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(FewstepError, match="type dinov2_with_registers; this one is 'dinov2'"):
        image_conditioner(tmp_path / "folder")


LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
VOCABULARY = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "oy</w>", "<|startoftext|>", "<|endoftext|>"]
START, END = len(VOCABULARY) - 2, len(VOCABULARY) - 1


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP, text and vision, with a tokenizer of letters and one merge, in the hub's files."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
    config = CLIPConfig(
        text_config={**shape, **special, "vocab_size": len(VOCABULARY), "max_position_embeddings": 77},
        vision_config={**shape, "image_size": 28, "patch_size": 14},
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\no y</w>\n")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "tokenizer_class": "CLIPTokenizer"}))
    return folder


def test_texts_are_padded_and_attended_to_without_a_mask(clip_folder: Path) -> None:
    encoder = text_conditioner(clip_folder)
    assert isinstance(encoder, ClipConditioner)
    ids = encoder.identifiers(["a Toy", ""])
    a, t, oy = VOCABULARY.index("a</w>"), VOCABULARY.index("t"), VOCABULARY.index("oy</w>")
    assert ids[0].tolist() == [START, a, t, oy] + [END] * 73
    assert ids[1].tolist() == [START] + [END] * 76
    tokens = encoder.encode(["a Toy"])
    assert tokens.shape == (1, 77, encoder.channels)
    mask = torch.ones(1, 77, dtype=torch.long)
    mask[:, 5:] = 0
    with torch.no_grad():
        masked = encoder.model(input_ids=ids[:1], attention_mask=mask).last_hidden_state
    assert torch.allclose(masked[:, :5], tokens[:, :5], atol=1e-5), "the model is causal"
    assert (masked[:, 5:] - tokens[:, 5:]).abs().max() > 1e-2, "padding must see the text and the padding before it"


def test_the_negative_is_the_empty_text(clip_folder: Path) -> None:
    encoder = text_conditioner(clip_folder)
    negative = encoder.negative(3)
    assert negative.shape == (3, 77, 16)
    assert torch.equal(negative, encoder.encode(["", "", ""])[:1].expand(3, -1, -1))
    assert negative.abs().max() > 0.1, "not zeros"


def test_a_long_text_is_cut_with_a_warning(clip_folder: Path) -> None:
    encoder = text_conditioner(clip_folder)
    with pytest.warns(UserWarning, match="has 82 tokens; those after 77 are cut"):
        long = encoder.encode([" ".join("abcdefgh" * 10)])
    ids = encoder.identifiers([" ".join(("abcdefgh" * 10)[:75])])
    assert ids[0, -1] == END
    assert ids[0, -2] != END
    assert torch.equal(long, encoder(ids))


def test_a_folder_without_its_tokenizer(clip_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    with pytest.raises(FewstepError, match=r"--text-encoder.*tokenizer.*2 entries for 55 embeddings"):
        text_conditioner(tmp_path)
    with pytest.raises(FewstepError, match=r"--image-encoder.*dinov2_with_registers; this one is 'clip'"):
        image_conditioner(clip_folder)
