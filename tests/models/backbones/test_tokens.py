from __future__ import annotations

import open_clip
import pytest
import torch

from odise_pl.models.backbones.tokens import VOCABULARY, tokenize, tokenizer

TEXTS = ["a photo of a cat", "", "Ünïcode 猫 🐈", "snowman " * 100]


def test_full_vocabulary_equals_clip() -> None:
    assert torch.equal(tokenize(TEXTS, VOCABULARY, 77), open_clip.tokenize(TEXTS))


@pytest.mark.parametrize("vocabulary", [514, 4096])
def test_small_vocabulary_encodes_all_texts(vocabulary: int) -> None:
    codec = tokenizer(vocabulary)
    assert codec.vocab_size == vocabulary
    assert (codec.sot_token_id, codec.eot_token_id) == (vocabulary - 2, vocabulary - 1)
    for text in TEXTS[:3]:
        assert codec.decode(codec.encode(text)).strip() == text.lower().strip()
    rows = tokenize(TEXTS, vocabulary, 20, pad=7)
    assert rows.shape == (4, 20)
    assert rows.max() < vocabulary
    assert (rows[1, 2:] == 7).all()
    assert rows[3, -1] == vocabulary - 1
