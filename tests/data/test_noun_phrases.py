from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk import RegexpParser, Tree

from odise_pl.data.noun_phrases import draw_words, extract_phrases, find_phrases

SINGLE = RegexpParser("NBAR: {<NN.*|JJ>*<NN.*>}")
JOINED = RegexpParser("NBAR: {<NN.*|JJ>*<NN.*>}\nJOINED: {<NBAR><IN><NBAR>}")
TAGS = ("NN", "NNS", "NNP", "JJ", "IN", "JJR", "DT", ".")
CAPTIONS = ("A brown dog runs on the grass.", "Two red balls lie in a box.")


@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=14), st.booleans())
def test_phrases_match_nltk_grammar(tags: list[str], joined: bool) -> None:
    tagged = [(f"token{i}", tag) for i, tag in enumerate(tags)]
    wanted = [
        " ".join(token for token, _ in node.leaves()) if isinstance(node, Tree) else None
        for node in (JOINED if joined else SINGLE).parse(tagged)
    ]
    assert list(find_phrases(tagged, joined)) == wanted


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A man stands with a red horse near the old barn.", ["man", "red horse", "old barn"]),
        ("Two dogs play with a ball", ["dogs", "ball"]),
        ("a bunch of bananas on wooden table.", ["bunch", "bananas", "wooden table", "bunch of bananas"]),
        ("a dog near a dog and a cat", ["dog", "cat"]),
        ("", []),
        ("!!!", []),
        ("very nicely", []),
    ],
)
def test_extract_phrases(caption: str, phrases: list[str]) -> None:
    assert extract_phrases(caption) == phrases


def draw(captions: tuple[str, ...], count: int = 8, seed: int = 0) -> tuple[str, ...]:
    return draw_words(captions, count, np.random.default_rng(seed))


def test_words_come_from_one_random_caption() -> None:
    phrases = [set(extract_phrases(caption)) for caption in CAPTIONS]
    seen = set()
    for seed in range(20):
        words = draw(CAPTIONS, seed=seed)
        assert len(words) == 8
        assert words == draw(CAPTIONS, seed=seed)
        (which,) = (i for i, own in enumerate(phrases) if set(words) <= own)
        seen.add(which)
    assert seen == {0, 1}


def test_no_words_without_phrases() -> None:
    for captions, count in (((), 8), (("",), 8), (("!?",), 8), (CAPTIONS, 0)):
        assert draw(captions, count) == ()


def test_any_text_gives_phrases() -> None:
    for caption in (" \n\t", "🐶🐱", "dog " * 1000, "一只狗在草地上。", "\x00\ud7ff", "/ n/a <b>{}"):
        assert all(phrase.strip() for phrase in extract_phrases(caption))
        assert len(draw((caption,))) in (0, 8)
