"""What the category ids of a prediction file stand for, by the list that the file itself has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from odise_pl.data import fields
from odise_pl.data.records import DataError
from odise_pl.vocabulary import Category, Vocabulary, VocabularyError, normalise_name


def match_listed(listed: Any, sets: Sequence[Vocabulary]) -> dict[int, int | str]:
    """The class index of each id that a file's ``categories`` list, or the reason why it has none.

    Classes are matched by name: ids of one list say nothing in another. Where several classes have the name,
    the one of the same id is meant.

    Args:
        listed: ``categories`` of the file.
        sets: the classes of the data set, under each of the names that they may be called by.

    Raises:
        DataError: the list is damaged or has an id twice.
    """
    if not isinstance(listed, list):
        raise DataError("categories is no list")
    found: dict[int, int | str] = {}
    for item in listed:
        category = _parsed(item)
        if category.id in found:
            raise DataError(f"categories has the id {category.id} twice")
        match = _match(category, "isthing" in item, sets)
        if isinstance(match, int) and match in found.values():
            match = f"{category.name!r}, whose class another category of this file has"
        found[category.id] = match
    return found


def _parsed(item: Any) -> Category:
    try:
        fields.integer(item, "id")
        fields.flag(item, "isthing", True)
        return Vocabulary.from_json({"categories": [item]}, "categories").categories[0]
    except (DataError, VocabularyError) as error:
        shown = item.get("id") if isinstance(item, Mapping) else item
        raise DataError(f"category {ascii(shown)[:80]} of categories: {error}") from error


def _match(category: Category, says_thing: bool, sets: Sequence[Vocabulary]) -> int | str:
    same = _called(category.name, sets)
    if len(same) > 1:
        same = [index for index in same if sets[0].categories[index].id == category.id]
    if len(same) != 1:
        return f"{category.name!r}, which names no one class of the data set"
    if says_thing and category.isthing != sets[0].isthing[same[0]]:
        kinds = ("stuff", "a thing")
        return f"{category.name!r}, {kinds[category.isthing]} here and {kinds[not category.isthing]} there"
    return same[0]


def _called(name: str, sets: Sequence[Vocabulary]) -> list[int]:
    """The classes of a name; their synonyms count where no main name does."""
    every = list(zip(*(vocabulary.categories for vocabulary in sets), strict=True))
    main = [{normalise_name(x) for c in one for x in (c.name, c.official)} for one in every]
    synonyms = [{normalise_name(x) for c in one for x in c.synonyms} for one in every]
    found = (
        [i for i, names in enumerate(kind) if normalise_name(name) in names] for kind in (main, synonyms)
    )
    return next(filter(None, found), [])
