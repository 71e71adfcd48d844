"""Encodings of recently used texts by a frozen text encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class TextCache:
    """Keeps the encodings of the texts that were used last.

    Args:
        encode: N texts to N encodings.
        limit: how many are kept; 20,000 embeddings of CLIP take 60 MB.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Tensor], limit: int = 20_000) -> None:
        self.encode, self.limit = encode, limit
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Encodings [len(texts), ...] on ``device``; every text that is not known is encoded once."""
        known = {text for text in texts if text in self._known and self._known[text].device == device}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            # validation encodes in inference mode what training uses later
            with torch.inference_mode(False):
                # copies, because a part of a tensor would keep all of it
                self._known.update(zip(new, (row.clone() for row in self.encode(new)), strict=True))
        for text in texts:
            self._known.move_to_end(text)
        found = torch.stack([self._known[text] for text in texts])
        while len(self._known) > self.limit:
            self._known.popitem(last=False)
        return found
