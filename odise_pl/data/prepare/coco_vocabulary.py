"""Map the category ids of a COCO annotation file to classes. Imports no torch.

Every annotation file has its own list of categories; the same id can mean another category in another file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from odise_pl.data import fields
from odise_pl.data.records import DataError, prefix_errors
from odise_pl.vocabulary import Category, Vocabulary, VocabularyError, load_vocabulary, normalise_name

_OWN_NAMES = (
    'name the classes in a file, {"categories": [{"id": 3, "name": "your name", "official": "name in the '
    'annotation file", "isthing": 0}, ...]}, and give it with --vocabulary FILE.json'
)


@dataclass(frozen=True)
class FileClasses:
    """The categories of an annotation file and their classes.

    Attributes:
        path: the annotation file.
        listed: its categories.
        vocabulary: the classes of the packed data set.
        index: class index of each category id.
        reasons: why other ids have no class.
        notes: for the user.
    """

    path: Path
    listed: tuple[Category, ...]
    vocabulary: Vocabulary
    index: Mapping[int, int]
    reasons: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def index_of(self, category_id: int) -> int:
        """The class index of an id; DataError if it has none."""
        if category_id not in self.index:
            reason = self.reasons.get(category_id, "which categories lacks")
            raise DataError(f"has category_id {category_id}, {reason}")
        return self.index[category_id]


def choose_classes(data: Any, path: Path, choice: str, name: str, things: bool = False) -> FileClasses:
    """Choose the vocabulary for the category list of an annotation file.

    Args:
        data: content of the annotation file.
        path: the annotation file, for messages.
        choice: ``auto``: the packaged COCO classes if the file lists exactly those, or exactly the things
            among them, else the file's own; ``annotation``: the file's own; anything else: a packaged name or
            a vocabulary file, which must know every category of the file.
        name: of the vocabulary, if it has the file's own categories.
        things: the file is in the instance format, which has no stuff and may omit ``isthing``.

    Raises:
        DataError: the file's categories are unusable, or the chosen vocabulary disagrees with them.
    """
    listed = _read_categories(data, path, things)
    stuff = [category for category in listed if things and not category.isthing]
    if stuff:
        raise DataError(
            f"{path}: category {stuff[0].id} '{stuff[0].name}' has isthing 0, but the instance format has "
            f"no stuff: remove the category, or set isthing to 1; to pack stuff, use odise prepare coco with "
            f"annotations in the panoptic format"
        )
    try:
        vocabulary, notes = _choose(data, listed, path, choice, name)
    except VocabularyError as error:
        raise DataError(f"{path}: {error}") from error
    index = {category.id: vocabulary.index_of(category.id) for category in listed}
    return FileClasses(path, listed, vocabulary, index, notes=notes)


def match_classes(data: Any, path: Path, known: FileClasses) -> FileClasses:
    """Match the categories of an instance file with those of its panoptic file by name.

    If several categories have the name, the id decides.

    Raises:
        DataError: the file's categories are unusable.
    """
    listed = _read_categories(data, path, things=True)
    index: dict[int, int] = {}
    reasons = {}
    for category in listed:
        same = [
            other for other in known.listed if normalise_name(other.name) == normalise_name(category.name)
        ]
        if len(same) > 1:
            same = [other for other in same if other.id == category.id] or same
        called = f"'{category.name}', which {known.path.name}"
        if len(same) != 1:
            reasons[category.id] = f"{called} {'has several times' if same else 'has no category of'}"
        elif not same[0].isthing:
            reasons[category.id] = f"{called} has as stuff, which has no objects"
        elif known.index[same[0].id] in index.values():
            raise DataError(f"{path}: two categories have the name '{category.name}'")
        else:
            index[category.id] = known.index[same[0].id]
    return FileClasses(path, listed, known.vocabulary, index, reasons)


def _read_categories(data: Any, path: Path, things: bool) -> tuple[Category, ...]:
    with prefix_errors(f"{path}:"):
        listed = tuple(_category(item, things) for item in fields.sequence(data, "categories"))
        for category_id, count in Counter(category.id for category in listed).items():
            if count > 1:
                raise DataError(f"{count} categories have the id {category_id}; it must be unique")
    return listed


def _category(item: Any, things: bool) -> Category:
    try:
        fields.identifier(item, "id")
        fields.text(item, "name")
        fields.flag(item, "isthing", True if things else None)
        return Vocabulary.from_json({"categories": [item]}, "categories").categories[0]
    except (DataError, VocabularyError) as error:
        shown = item.get("name", item.get("id")) if isinstance(item, Mapping) else item
        colon = "" if isinstance(error, DataError) else ":"
        raise DataError(
            f"category {shortened(shown)}{colon} {error}; see data/README.md for the fields of a category"
        ) from error


def _choose(
    data: Any, listed: Sequence[Category], path: Path, choice: str, name: str
) -> tuple[Vocabulary, tuple[str, ...]]:
    """The vocabulary, and notes for the user."""
    if choice not in ("auto", "annotation"):
        chosen = load_vocabulary(choice)
        if reason := _find_disagreement(chosen, listed):
            hint = "use --vocabulary annotation for the file's own categories"
            raise DataError(f"{path}: {reason}; {hint}")
        return chosen, ()
    official = load_vocabulary("coco_panoptic")
    things = Vocabulary("coco_things", tuple(c for c in official.categories if c.isthing))
    for known in (official, things) if choice == "auto" else ():
        if len(known) == len(listed) and not _find_disagreement(known, listed):
            return known, ()
    return _own_vocabulary(data, listed, name)


def _own_vocabulary(data: Any, listed: Sequence[Category], name: str) -> tuple[Vocabulary, tuple[str, ...]]:
    """The file's own classes; a supercategory is prepended to duplicate names."""
    times = Counter(normalise_name(category.name) for category in listed)
    named = tuple(
        _add_supercategory(category, item.get("supercategory"))
        if times[normalise_name(category.name)] > 1
        else category
        for item, category in zip(data["categories"], listed, strict=True)
    )
    renamed = [new.name for old, new in zip(listed, named, strict=True) if old != new]
    note = f"the supercategory was prepended to duplicate category names: {', '.join(renamed)}"
    try:
        return Vocabulary(name, named), (note,) if renamed else ()
    except VocabularyError as error:
        raise VocabularyError(f"{error}: {_OWN_NAMES}") from error


def _add_supercategory(category: Category, supercategory: Any) -> Category:
    if not isinstance(supercategory, str) or not supercategory.strip():
        return category
    official = category.official or category.name
    return replace(category, name=f"{supercategory.strip()} {category.name}", official=official)


def _find_disagreement(vocabulary: Vocabulary, listed: Sequence[Category]) -> str | None:
    """How a vocabulary disagrees with the categories of a file, if it does."""
    known = {category.id: category for category in vocabulary.categories}
    for category in listed:
        ours = known.get(category.id)
        names = {name.casefold() for name in (*ours.names, ours.official)} if ours else set()
        if ours is None or category.name.casefold() not in names or category.isthing != ours.isthing:
            theirs = "has no such id" if ours is None else f"has {_describe(ours)}"
            what = f"category {category.id} is {_describe(category)}"
            return f"{what}, but vocabulary '{vocabulary.name}' {theirs}"
    return None


def _describe(category: Category) -> str:
    return f"{'thing' if category.isthing else 'stuff'} '{category.official or category.name}'"
