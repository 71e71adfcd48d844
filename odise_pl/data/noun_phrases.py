"""Noun phrases of captions: the words that the caption model grounds in masks (ODISE, section 3.4).

A phrase is a run of adjectives and nouns that ends in a noun. Two of them joined by a preposition ("group of
people") form another phrase. Articles and numbers are not part of phrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

# Grammars over one letter per token: n(oun), (ad)j(ective), i (preposition), o(ther).
# nltk.RegexpParser gives the same phrases but takes five times as long as tagging.
_SINGLE = re.compile("[nj]*n")
_JOINED = re.compile("[nj]*ni[nj]*n|[nj]*n")


def draw_words(captions: Sequence[str], count: int, random: np.random.Generator) -> tuple[str, ...]:
    """Draw ``count`` noun phrases of one random caption, with replacement.

    Returns:
        ``count`` phrases; none if there is no caption or the chosen one has no noun phrase.
    """
    if not count or not captions:
        return ()
    phrases = extract_phrases(captions[int(random.integers(len(captions)))])
    return tuple(phrases[i] for i in random.integers(len(phrases), size=count)) if phrases else ()


def extract_phrases(caption: str) -> list[str]:
    """The distinct phrases of a caption: first single ones, then joined ones, each in order of occurrence."""
    tagged = tag(caption)
    found = (phrase for joined in (False, True) for phrase in find_phrases(tagged, joined))
    return list(dict.fromkeys(phrase for phrase in found if phrase is not None))


def tag(text: str) -> list[tuple[str, str]]:
    """Tokens of an English text with their Penn Treebank tags, by a lexicon that needs no download."""
    from textblob.en import tag as pattern_tag  # loading the lexicon takes a second

    return [(token, part) for token, part in pattern_tag(text, tokenize=True)]


def find_phrases(tagged: Sequence[tuple[str, str]], joined: bool) -> Iterator[str | None]:
    """Each phrase of a tagged text, and None for each token outside phrases.

    Args:
        tagged: tokens and Penn Treebank tags.
        joined: join two phrases with a preposition between them.
    """
    line = "".join(_letter(tag) for _, tag in tagged)
    end = 0
    for match in (_JOINED if joined else _SINGLE).finditer(line):
        yield from [None] * (match.start() - end)
        end = match.end()
        yield " ".join(token for token, _ in tagged[match.start() : end])
    yield from [None] * (len(line) - end)


def _letter(tag: str) -> str:
    return "n" if tag.startswith("NN") else {"JJ": "j", "IN": "i"}.get(tag, "o")
