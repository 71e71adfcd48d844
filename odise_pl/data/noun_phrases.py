"""Noun phrases of captions: the words that the caption model grounds in masks (ODISE, section 3.4).

A phrase is a run of adjectives and nouns that ends in a noun; two of them joined by a preposition ("group of
people") are a phrase too. Articles and numbers belong to none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

from nltk import RegexpParser, Tree
from textblob.en import tag as pattern_tag

# A text as (token, Penn Treebank tag).
Tagged = Sequence[tuple[str, str]]

_PHRASE = "NBAR: {<NN.*|JJ>*<NN.*>}"
_JOINED = "JOINED: {<NBAR><IN><NBAR>}"


def tag(text: str) -> list[tuple[str, str]]:
    """Tokens of an English text with their parts of speech, by a lexicon that needs no download."""
    return [(token, part) for token, part in pattern_tag(text, tokenize=True)]


def caption_phrases(
    caption: str, published_quirks: bool = False, tagger: Callable[[str], Tagged] = tag
) -> list[str]:
    """All phrases of a caption, single and joined, each once, in order of first mention.

    Args:
        caption: one caption; may have several sentences.
        published_quirks: see :func:`noun_phrases`.
        tagger: text to tokens and their tags.

    Returns:
        possibly nothing.
    """
    tagged = tagger(caption)
    found = [phrase for joined in (False, True) for phrase in noun_phrases(tagged, joined, published_quirks)]
    return list(dict.fromkeys(found))


def noun_phrases(tagged: Tagged, joined: bool = False, published_quirks: bool = False) -> list[str]:
    """Phrases of a tagged text, each once, in order.

    Args:
        tagged: tokens and tags.
        joined: two phrases with one preposition between them count as one.
        published_quirks: as the release does it: a phrase is noted when a token follows it that belongs to
            none, so one that ends the text is lost; and one that was noted before sticks to the next.
    """
    chunks = list(_chunks(tagged, joined))
    if published_quirks:
        return _noted_when_followed(chunks)
    return list(dict.fromkeys(chunk for chunk in chunks if chunk is not None))


def _noted_when_followed(chunks: Sequence[str | None]) -> list[str]:
    noted: list[str] = []
    pending: list[str] = []
    for chunk in chunks:
        if chunk is not None:
            pending.append(chunk)
        elif pending and " ".join(pending) not in noted:
            noted.append(" ".join(pending))
            pending = []
    return noted


def _chunks(tagged: Tagged, joined: bool) -> Iterator[str | None]:
    """Each phrase, and None for each token outside."""
    if not tagged:
        return
    for node in _parser(joined).parse(list(tagged)):
        yield " ".join(token for token, _ in node.leaves()) if isinstance(node, Tree) else None


@cache
def _parser(joined: bool) -> RegexpParser:
    return RegexpParser(f"{_PHRASE}\n{_JOINED}" if joined else _PHRASE)
