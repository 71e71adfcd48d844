"""Embeddings of texts that come again and again, from a frozen text encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Encode = Callable[[Sequence[str]], Tensor]


class TextCache:
    """Remembers the texts that were used last.

    Args:
        limit: how many; 20,000 of CLIP's take 60 MB.
    """

    def __init__(self, limit: int = 20_000) -> None:
        self.limit = limit
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def embed(self, texts: Sequence[str], encode: Encode, device: torch.device) -> Tensor:
        """Embeddings [len(texts), D] on ``device``; ``encode`` makes those that are not known, each once."""
        new = [text for text in dict.fromkeys(texts) if not self._is_there(text, device)]
        if new:
            # copies, because a part of a tensor would keep all of it
            self._known.update(zip(new, (row.clone() for row in encode(new)), strict=True))
        for text in texts:
            self._known.move_to_end(text)
        found = torch.stack([self._known[text] for text in texts])
        while len(self._known) > self.limit:
            self._known.popitem(last=False)
        return found

    def _is_there(self, text: str, device: torch.device) -> bool:
        return text in self._known and self._known[text].device == device
