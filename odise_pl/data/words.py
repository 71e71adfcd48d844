"""The words of an image that the caption model grounds in masks (ODISE, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_words(captions: Sequence[str], count: int, random: np.random.Generator) -> tuple[str, ...]:
    """``count`` noun phrases of one random caption, drawn with replacement.

    Args:
        captions: of one image.
        count: how many words; 0 asks for none.
        random: decides about caption and words.

    Returns:
        ``count`` phrases, or none if there is no caption or the chosen one has no noun phrase.
    """
    if not count or not captions:
        return ()
    # the tagger's lexicon takes a second to load, which only caption training should pay
    from odise_pl.data.noun_phrases import caption_phrases

    phrases = caption_phrases(captions[int(random.integers(len(captions)))])
    return tuple(phrases[i] for i in random.integers(len(phrases), size=count)) if phrases else ()
