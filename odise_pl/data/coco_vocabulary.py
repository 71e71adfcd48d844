"""Which vocabulary a COCO annotation file is packed with. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odise_pl.data.records import DataError
from odise_pl.vocabulary import Category, Vocabulary, VocabularyError, load_vocabulary

OFFICIAL = "coco_panoptic"


def choose_vocabulary(data: Any, path: Path, choice: str, name: str) -> Vocabulary:
    """The vocabulary for the category list of an annotation file.

    Args:
        data: content of the annotation file.
        path: the annotation file, for messages.
        choice: ``auto``: the packaged COCO classes if the file lists exactly those, or exactly the things
            among them, else the file's own;
            ``annotation``: the file's own; anything else: a packaged name or a vocabulary file, which must
            know every category of the file.
        name: what a vocabulary of the file's own categories is called.

    Raises:
        DataError: the file's categories are unusable, or the chosen vocabulary disagrees with them.
    """
    try:
        own = Vocabulary.from_json(data, name)
        if choice == "annotation":
            return own
        if choice != "auto":
            return _agreeing(load_vocabulary(choice), own, path)
        official = load_vocabulary(OFFICIAL)
    except VocabularyError as error:
        raise DataError(f"{path}: {error}") from error
    things = Vocabulary("coco_things", tuple(c for c in official.categories if c.isthing))
    return next((known for known in (official, things) if _is_same(known, own)), own)


def _agreeing(chosen: Vocabulary, own: Vocabulary, path: Path) -> Vocabulary:
    known = {category.id: category for category in chosen.categories}
    for category in own.categories:
        expected = known.get(category.id)
        if expected is None or not _agree(expected, category):
            there = "has no such id" if expected is None else f"has {_described(expected)}"
            raise DataError(
                f"{path}: category {category.id} is {_described(category)}, but vocabulary '{chosen.name}' "
                f"{there}; use --vocabulary annotation to take the file's own categories"
            )
    return chosen


def _is_same(official: Vocabulary, own: Vocabulary) -> bool:
    known = {category.id: category for category in official.categories}
    same_ids = known.keys() == {category.id for category in own.categories}
    return same_ids and all(_agree(known[category.id], category) for category in own.categories)


def _agree(one: Category, other: Category) -> bool:
    names = {name.casefold() for name in (*one.names, one.official)}
    return other.name.casefold() in names and one.isthing == other.isthing


def _described(category: Category) -> str:
    return f"{'thing' if category.isthing else 'stuff'} '{category.official or category.name}'"
