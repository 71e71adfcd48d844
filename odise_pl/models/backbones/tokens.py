"""CLIP's byte-pair tokenizer, also with a smaller vocabulary."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from torch import Tensor

VOCABULARY = 49408  # of the published models
_BYTES, _SPECIAL = 512, 2  # single bytes, inside and at the end of a word; start and end of a text


@cache
def tokenizer(vocabulary: int = VOCABULARY) -> SimpleTokenizer:
    """The tokenizer of a model with ``vocabulary`` token embeddings.

    A smaller vocabulary keeps the most frequent merges, so rare words have more tokens. The last two tokens
    are always start and end of a text.
    """
    if vocabulary == VOCABULARY:
        return SimpleTokenizer()
    header_and_merges = gzip.decompress(Path(default_bpe()).read_bytes()).split(b"\n")
    kept = header_and_merges[: 1 + vocabulary - _BYTES - _SPECIAL]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merges.txt.gz"
        path.write_bytes(gzip.compress(b"\n".join(kept)))
        return SimpleTokenizer(bpe_path=str(path))


def tokenize(texts: Sequence[str], vocabulary: int, length: int, pad: int = 0) -> Tensor:
    """Tokens of texts, int64 [len(texts), length]: start, truncated text, end, then ``pad``."""
    codec = tokenizer(vocabulary)
    rows = torch.as_tensor(codec(list(texts), context_length=length))
    is_end = rows == codec.eot_token_id
    after_end = torch.cumsum(is_end, dim=1) - is_end.long() > 0
    return rows.masked_fill(after_end, pad)
