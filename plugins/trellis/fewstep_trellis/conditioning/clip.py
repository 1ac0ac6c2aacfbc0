"""CLIP's text tokens as TRELLIS's text condition: all 77 of them, without a padding mask."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import invalid
from fewstep_trellis.conditioning import hub
from fewstep_trellis.conditioning.protocol import OPTION_TEXT

LENGTH = 77
_REST = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")  # in a checkpoint of the whole CLIP
_TABLES = ("text_model.embeddings.position_ids", "embeddings.position_ids")  # constants that older files hold
KIND = hub.Kind("text encoder", OPTION_TEXT, "CLIPTextModel", ("clip", "clip_text_model"), _REST + _TABLES)


class ClipConditioner(nn.Module):
    """Texts to tokens [B, 77, C]: the last hidden state, after the model's own last norm.

    Args:
        model: a ``CLIPTextModel`` of transformers.
        tokenizer: of the same folder.
        name: for records and messages.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        self.channels = int(model.config.hidden_size)

    @classmethod
    def from_folder(cls, folder: Path, name: str = "") -> ClipConditioner:
        """Weights and tokenizer in transformers' format. Raises FewstepError where they cannot be used."""
        model = hub.load(folder, KIND)
        return cls(model, _tokenizer(folder, int(model.config.vocab_size)), name or str(folder))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokens [B, 77, C]. A text of more than 77 tokens, its start and end included, is cut, with a warning."""
        tokens: Tensor = self(self.identifiers(texts).to(next(self.parameters()).device))
        return tokens

    def negative(self, batch: int) -> Tensor:
        """The encoding of the empty text, repeated [B, 77, C]."""
        return self.encode([""]).expand(batch, -1, -1)

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [B, 77] to tokens [B, 77, C]. No mask: TRELLIS was trained with the padding's tokens included."""
        tokens: Tensor = self.model(input_ids=ids).last_hidden_state
        return tokens

    def identifiers(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 [B, 77], padded and truncated."""
        with hub.quiet():
            lengths = [len(ids) for ids in self.tokenizer(list(texts)).input_ids]
        for text, length in zip(texts, lengths, strict=True):
            if length > LENGTH:
                warnings.warn(f"text {text[:40]!r}... has {length} tokens; those after {LENGTH} are cut", stacklevel=3)
        given = self.tokenizer(list(texts), max_length=LENGTH, padding="max_length", truncation=True)
        return torch.tensor(given.input_ids)


def _tokenizer(folder: Path, words: int) -> Any:
    """The folder's tokenizer. Raises FewstepError where there is none, or one of another vocabulary."""
    wanted = "a folder with the model's tokenizer (tokenizer.json, or vocab.json and merges.txt)"
    with hub.quiet():
        try:
            tokenizer = hub.transformers("AutoTokenizer").from_pretrained(folder, local_files_only=True)
        except Exception as error:  # as in hub.load
            raise invalid(OPTION_TEXT, str(folder), f"{wanted}; {hub.reason(error)}") from error
    if len(tokenizer) != words:  # transformers makes an empty one where the files are missing
        raise invalid(
            OPTION_TEXT, str(folder), f"{wanted}; this one has {len(tokenizer)} entries for {words} embeddings"
        )
    return tokenizer
