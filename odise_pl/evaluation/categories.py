"""Match the categories that a prediction file lists to the classes of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from odise_pl.data import fields
from odise_pl.data.records import DataError
from odise_pl.vocabulary import Category, Vocabulary, VocabularyError, normalise_name


def match_listed(listed: Any, sets: Sequence[Vocabulary]) -> dict[int, int | str]:
    """The class index of each category id, or the reason why no class matches.

    Categories are matched by name, because every list may number them in its own way. If several classes have
    the name, the id decides.

    Args:
        listed: ``categories`` of the file.
        sets: the classes of the data set, under each of their sets of names.

    Raises:
        DataError: the list is damaged or has a duplicate id.
    """
    if not isinstance(listed, list):
        raise DataError("categories is not a list")
    found: dict[int, int | str] = {}
    for item in listed:
        category = _parse(item)
        if category.id in found:
            raise DataError(f"categories has the duplicate id {category.id}")
        match = _match(category, "isthing" in item, sets)
        if isinstance(match, int) and match in found.values():
            match = f"{category.name!r}, and another category of the file has the same class"
        found[category.id] = match
    return found


def _parse(item: Any) -> Category:
    try:
        fields.integer(item, "id")
        fields.flag(item, "isthing", True)
        return Vocabulary.from_json({"categories": [item]}, "categories").categories[0]
    except (DataError, VocabularyError) as error:
        shown = item.get("id") if isinstance(item, Mapping) else item
        raise DataError(f"category {ascii(shown)[:80]} of categories: {error}") from error


def _match(category: Category, says_thing: bool, sets: Sequence[Vocabulary]) -> int | str:
    named = _find_by_name(category.name, sets)
    same = [i for i in named if len(named) == 1 or sets[0].categories[i].id == category.id]
    if len(same) != 1:
        return f"{category.name!r}, which is {'ambiguous' if named else 'no class'} in the data set"
    if says_thing and category.isthing != sets[0].isthing[same[0]]:
        kinds = ("stuff", "a thing")
        theirs, ours = kinds[category.isthing], kinds[not category.isthing]
        return f"{category.name!r}, which is {theirs} in the file and {ours} in the data set"
    return same[0]


def _find_by_name(name: str, sets: Sequence[Vocabulary]) -> list[int]:
    """Classes with this name, or if there are none, with this synonym."""
    every = list(zip(*(vocabulary.categories for vocabulary in sets), strict=True))
    main = [{normalise_name(x) for c in one for x in (c.name, c.official)} for one in every]
    synonyms = [{normalise_name(x) for c in one for x in c.synonyms} for one in every]
    found = (
        [i for i, names in enumerate(kind) if normalise_name(name) in names] for kind in (main, synonyms)
    )
    return next(filter(None, found), [])
