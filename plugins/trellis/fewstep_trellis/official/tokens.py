"""Picture tokens kept on disk, in half precision, by picture and by what made them."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.files import Unwritable, new_file

KEY = "tokens"


class TokenCache:
    """Tokens by picture file below a folder.

    Callers round new tokens to half precision too (``rounded``), so that a run does not depend on what was cached
    before it.

    Args:
        folder: made when the first tokens are written.
        made_by: identifies the encoder's weights and settings.
    """

    def __init__(self, folder: Path, made_by: str) -> None:
        self.folder = folder / hashlib.sha256(made_by.encode()).hexdigest()[:16]

    def read(self, picture: Path) -> Tensor | None:
        """Float32 [L, C], or None where there is nothing (a damaged file counts as nothing and is written again)."""
        try:
            return load_file(self._path(picture))[KEY].float()
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, picture: Path, tokens: Tensor) -> None:
        """Keep tokens [L, C]. Best effort: without a writable folder they are encoded again."""
        try:
            path = self._path(picture)
        except OSError:
            return
        with suppress(Unwritable), new_file(path) as temp:
            save_file({KEY: tokens.half().cpu().contiguous()}, temp)

    def _path(self, picture: Path) -> Path:
        name, found = picture.parent.name, picture.stat()  # an object's folder is named after its identifier
        state = f"{picture.resolve()}/{found.st_size}/{found.st_mtime_ns}"  # another if rendered again
        digest = hashlib.sha256(state.encode()).hexdigest()[:8]
        return self.folder / name[:2] / f"{name}-{picture.stem}-{digest}.safetensors"


def rounded(tokens: Tensor) -> Tensor:
    """Tokens as they come back from the cache."""
    return tokens.half().float()


def fingerprint(module: nn.Module) -> str:
    """A digest of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
