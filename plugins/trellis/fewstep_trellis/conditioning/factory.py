"""Encoders by name: what ``pipeline.json`` calls them, a hub repository, or weights on disk."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from fewstep_shapes3d.data import SWEETHOME3D
from torch.hub import get_dir

from fewstep.errors import FewstepError, invalid, nearest
from fewstep_trellis.conditioning import clip, dino, hub
from fewstep_trellis.conditioning.protocol import OPTION_IMAGE, ImageConditioner, TextConditioner

NANO = "efficientnet-lite0"
CLIP = "openai/clip-vit-large-patch14"
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
DINO = {f"dinov2_vit{letter}14_reg": f"facebook/dinov2-with-registers-{size}" for letter, size in _SIZES.items()}


def image_conditioner(name: str | Path, *, data: Path | str = SWEETHOME3D) -> ImageConditioner:
    """The image encoder of this name.

    Args:
        name: "dinov2_vitl14_reg" and its sizes s, b, g (torch.hub's cached file if there is one, else the hub's
            ``facebook/dinov2-with-registers-large``), another such hub repository, a folder in transformers' format,
            a file in DINOv2's own layout, or "efficientnet-lite0".
        data: the prepared set whose basis "efficientnet-lite0" uses.

    Raises:
        FewstepError: nothing of this name, or it cannot be loaded or downloaded; names the option to give a folder.
    """
    text, place = str(name), Path(name)
    if text == NANO:
        from fewstep_trellis.conditioning.efficientnet import (
            EfficientNetConditioner,  # the prepared set's reader itself imports from here
        )

        return EfficientNetConditioner.of(data)
    if os.path.exists(place):  # unlike Path.exists, for any text
        return _dino_on_disk(place)
    if (cached := _torch_hub_file(text)) is not None:
        return dino.DinoConditioner.from_original(cached, text)
    return dino.DinoConditioner.from_folder(_downloaded(text, dino.KIND, DINO, NANO), text)


def check_image_conditioner(name: str | Path) -> None:
    """Look whether the image encoder of this name is there, of the right kind and whole, without reading weights. What
    may be on the hub is not fetched for it.

    Raises:
        FewstepError: as :func:`image_conditioner`.
    """
    text, place = str(name), Path(name)
    if text == NANO:
        return
    if os.path.exists(place):
        if (file := _original_file(place)) is None:
            hub.check_folder(place, dino.KIND)
        else:
            hub.check_file(file, dino.KIND)
    elif (cached := _torch_hub_file(text)) is not None:
        hub.check_file(cached, dino.KIND)
    else:
        _repository(text, dino.KIND, DINO, NANO)


def check_text_conditioner(name: str | Path) -> None:
    """The same for the text encoder of this name."""
    if os.path.exists(name):
        hub.check_folder(Path(name), clip.KIND)
    else:
        _repository(str(name), clip.KIND, {CLIP: CLIP})


def text_conditioner(name: str | Path = CLIP) -> TextConditioner:
    """The text encoder of this name: a hub repository of a CLIP, or a folder in transformers' format.

    Raises:
        FewstepError: nothing of this name, or it cannot be loaded or downloaded; names the option to give a folder.
    """
    text, place = str(name), Path(name)
    if os.path.exists(place):  # unlike Path.exists, for any text
        return clip.ClipConditioner.from_folder(place)
    return clip.ClipConditioner.from_folder(_downloaded(text, clip.KIND, {CLIP: CLIP}), text)


def _dino_on_disk(place: Path) -> ImageConditioner:
    if (file := _original_file(place)) is None:
        return dino.DinoConditioner.from_folder(place)
    return dino.DinoConditioner.from_original(file, str(place))


def _original_file(place: Path) -> Path | None:
    """The file in DINOv2's own layout: the place itself, or the one file in it; None for a folder of transformers."""
    if not place.is_dir():
        return place
    if (place / hub.CONFIG).exists():
        return None
    files = sorted(path for path in place.iterdir() if path.suffix in hub.WEIGHTS)
    if len(files) != 1:
        wanted = f"a folder with {hub.CONFIG} and model.safetensors, or with one file of DINOv2's own"
        raise invalid(OPTION_IMAGE, str(place), f"{wanted}; this one has {len(files)} such files")
    return files[0]


def _torch_hub_file(name: str) -> Path | None:
    """The original weights where torch.hub, and so TRELLIS itself, keeps them."""
    path = Path(get_dir()) / "checkpoints" / f"{name}4_pretrain.pth"
    return path if name in DINO and path.is_file() else None


def _downloaded(name: str, kind: hub.Kind, known: dict[str, str], *also: str) -> Path:
    """The folder of a name's files, from the hub or its cache.

    Args:
        name, kind, known, also: as of ``_repository``.

    Raises:
        FewstepError: the name cannot be a repository's, or the repository cannot be downloaded.
    """
    repository = _repository(name, kind, known, *also)
    close = [] if name in known else get_close_matches(name, known.values(), n=1, cutoff=0.8)
    return hub.download(repository, kind, "".join(f"; did you mean {other!r}?" for other in close if other != name))


def _repository(name: str, kind: hub.Kind, known: dict[str, str], *also: str) -> str:
    """The hub repository of a name, as owner/name.

    Args:
        name: one of ``known`` or owner/name.
        kind: of encoder.
        known: names, with their repositories.
        also: further accepted names, without a repository.

    Raises:
        FewstepError: the name cannot be a repository's.
    """
    repository = known.get(name, name)
    if hub.is_repository(repository):
        return repository
    names = sorted([*also, *known])
    hint = f"; did you mean {close_name!r}?" if (close_name := nearest(name, names)) else ""
    accepted = f"{', '.join(names)}, an owner/name on the hub, or an existing folder or file"
    raise FewstepError(f"{kind.option}: unknown {kind.what} {name!r}: accepted are {accepted}{hint}")
