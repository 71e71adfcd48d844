"""Map the category ids of a COCO annotation file to classes. Imports no torch.

Every annotation file has its own list of categories; the same id can mean another category in another file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """

    path: Path
    listed: tuple[Category, ...]
    vocabulary: Vocabulary
    index: Mapping[int, int]
    reasons: Mapping[int, str] = field(default_factory=dict)

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
    if stuff := [category for category in listed if things and not category.isthing]:
        raise DataError(
            f"{path}: category {stuff[0].id} '{stuff[0].name}' has isthing 0, but the instance format "
            f"has no stuff: remove it, set isthing to 1, or use odise prepare coco with panoptic annotations"
        )
    with prefix_errors(f"{path}:"):
        try:
            vocabulary = _choose(listed, choice, name)
        except VocabularyError as error:
            raise DataError(str(error)) from error
    return FileClasses(path, listed, vocabulary, {c.id: vocabulary.index_of(c.id) for c in listed})


def match_classes(data: Any, path: Path, known: FileClasses) -> FileClasses:
    """Match the categories of an instance file with those of its panoptic file by name.

    Raises:
        DataError: the file's categories are unusable.
    """
    listed = _read_categories(data, path, things=True)
    times = Counter(normalise_name(category.name) for category in known.listed)
    things = {normalise_name(c.name): known.index[c.id] for c in known.listed if c.isthing}
    index: dict[int, int] = {}
    reasons = {}
    for category in listed:
        name = normalise_name(category.name)
        if name not in things or times[name] > 1:
            reasons[category.id] = f"'{category.name}', which is no thing of {known.path.name}, or several"
        elif things[name] in index.values():
            raise DataError(f"{path}: two categories have the name '{category.name}'")
        else:
            index[category.id] = things[name]
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
        raise DataError(
            f"category {shortened(shown)} {error}; see docs/data.md for the fields of a category"
        ) from error


def _choose(listed: Sequence[Category], choice: str, name: str) -> Vocabulary:
    if choice not in ("auto", "annotation"):
        chosen = load_vocabulary(choice)
        if unknown := _find_unknown(chosen, listed):
            kind = "thing" if unknown.isthing else "stuff"
            raise DataError(
                f"category {unknown.id} is {kind} '{unknown.name}', which vocabulary '{chosen.name}' lacks "
                f"or has with another id; use --vocabulary annotation for the file's own categories"
            )
        return chosen
    official = load_vocabulary("coco_panoptic")
    things = Vocabulary("coco_things", tuple(c for c in official.categories if c.isthing))
    for known in (official, things) if choice == "auto" else ():
        if len(known) == len(listed) and not _find_unknown(known, listed):
            return known
    try:
        return Vocabulary(name, tuple(listed))
    except VocabularyError as error:
        raise VocabularyError(f"{error}: {_OWN_NAMES}") from error


def _find_unknown(vocabulary: Vocabulary, listed: Sequence[Category]) -> Category | None:
    """The first category that has no class of the same id, name (or synonym) and kind."""
    known = {category.id: category for category in vocabulary.categories}
    for category in listed:
        ours = known.get(category.id)
        names = {name.casefold() for name in (*ours.names, ours.official)} if ours else set()
        if ours is None or category.name.casefold() not in names or category.isthing != ours.isthing:
            return category
    return None
