from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from odise_pl.data.noun_phrases import caption_phrases, noun_phrases, tag

RECORD = json.loads((Path(__file__).parents[1] / "fixtures" / "isolated_noun_phrases.json").read_text())


def tagged(text: str) -> list[tuple[str, str]]:
    return [(token, RECORD["tags"][token]) for token in re.findall(r"\w+|[^\w\s]", text)]


@pytest.mark.parametrize(("mode", "joined"), [("no_prep", False), ("prep", True)])
@pytest.mark.parametrize("text", RECORD["phrases"])
def test_with_published_quirks_they_are_the_recorded_ones(text: str, mode: str, joined: bool) -> None:
    found = noun_phrases(tagged(text), joined, published_quirks=True)
    assert found == RECORD["phrases"][text][mode]


# (text, single phrases, joined phrases, single phrases as published)
CASES = [
    ("the dog runs .", ["dog"], ["dog"], ["dog"]),
    ("two people sit on a bench", ["people", "bench"], ["people", "bench"], ["people"]),
    ("a dog", ["dog"], ["dog"], []),
    ("a dog .", ["dog"], ["dog"], ["dog"]),
    ("group of people .", ["group", "people"], ["group of people"], ["group", "people"]),
    ("a brown dog on green grass", ["brown dog", "green grass"], ["brown dog on green grass"], ["brown dog"]),
    # an article between them keeps two phrases apart
    ("dog on the grass .", ["dog", "grass"], ["dog", "grass"], ["dog", "grass"]),
    # said before, as published it sticks to the next
    ("a dog near a dog and a cat .", ["dog", "cat"], ["dog", "cat"], ["dog", "dog cat"]),
    ("runs on .", [], [], []),
    ("green .", [], [], []),
    ("", [], [], []),
]


@pytest.mark.parametrize(("text", "single", "joined", "published"), CASES)
def test_phrases_are_adjectives_and_nouns_that_end_in_a_noun(
    text: str, single: list[str], joined: list[str], published: list[str]
) -> None:
    assert noun_phrases(tagged(text)) == single
    assert noun_phrases(tagged(text), joined=True) == joined
    assert noun_phrases(tagged(text), published_quirks=True) == published


def test_a_caption_has_its_single_and_its_joined_phrases_once() -> None:
    found = caption_phrases("a group of people and people .", tagger=tagged)
    assert found == ["group", "people", "group of people"]


def test_texts_are_tagged_without_anything_downloaded() -> None:
    assert tag("A man stands with a red horse near the old barn.") == [
        ("A", "DT"),
        ("man", "NN"),
        ("stands", "VBZ"),
        ("with", "IN"),
        ("a", "DT"),
        ("red", "JJ"),
        ("horse", "NN"),
        ("near", "IN"),
        ("the", "DT"),
        ("old", "JJ"),
        ("barn", "NN"),
        (".", "."),
    ]


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("A man stands with a red horse near the old barn.", ["man", "red horse", "old barn"]),
        ("Two dogs play with a ball", ["dogs", "ball"]),
        ("a bunch of bananas on wooden table.", ["bunch", "bananas", "wooden table", "bunch of bananas"]),
        ("", []),
        ("   ", []),
        ("!!!", []),
        ("very nicely", []),
    ],
)
def test_phrases_of_plain_captions(caption: str, wanted: list[str]) -> None:
    assert caption_phrases(caption) == wanted


def test_a_caption_of_another_script_does_no_harm() -> None:
    assert all(phrase.strip() for phrase in caption_phrases("一只狗在草地上 🐕 café"))
