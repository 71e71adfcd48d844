"""A tiny BLIP captioning model with random weights, saved to a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import stir
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipTextConfig,
    BlipVisionConfig,
    PreTrainedTokenizerFast,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *(f"word{i}" for i in range(27))]


def save(folder: Path) -> Path:
    """Save model and tokenizer; returns the folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 4, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = BlipTextConfig(**sizes, encoder_hidden_size=16, vocab_size=32, **special)
    vision = BlipVisionConfig(**sizes, image_size=32, patch_size=16)
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    model = BlipForConditionalGeneration(config)
    stir(model, size=0.5)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        bos_token="[DEC]",
    ).save_pretrained(folder)  # fmt: skip
    return folder
