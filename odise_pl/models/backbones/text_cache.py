"""A cache of text encodings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class TextCache:
    """Cache of the last ``limit`` texts of a frozen text encoder.

    Args:
        encode: maps N texts to N encodings.
        limit: number of cached texts; 20,000 CLIP embeddings take 60 MB.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Tensor], limit: int = 20_000) -> None:
        self.encode, self.limit = encode, limit
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Encodings [len(texts), ...] on ``device``; each text that is not cached is encoded once."""
        known = {text for text in texts if text in self._known and self._known[text].device == device}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            # validation runs in inference mode, whose tensors training could not use
            with torch.inference_mode(False):
                # a view would keep the whole tensor in memory
                self._known.update(zip(new, (row.clone() for row in self.encode(new)), strict=True))
        found = torch.stack([self._known[text] for text in texts])
        for text in list(self._known)[: -self.limit]:
            del self._known[text]
        return found
