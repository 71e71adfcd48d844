"""Which classes the category ids of a COCO annotation file stand for. Imports no torch.

Every annotation file numbers its categories by its own list: ids of one file say nothing in another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from odise_pl.data import fields
from odise_pl.data.records import DataError
from odise_pl.vocabulary import Category, Vocabulary, VocabularyError, load_vocabulary, normalised

OFFICIAL = "coco_panoptic"
_OWN = ("auto", "annotation")  # choices that may take the classes of the file
_OWN_NAMES = (
    'name the classes in a file, {"categories": [{"id": 3, "name": "your name", "official": "name in the '
    'annotation file", "isthing": 0}, ...]}, and give it with --vocabulary FILE.json'
)


@dataclass(frozen=True)
class ListedCategory:
    """An entry of ``categories``, with its ``supercategory``, which may be empty."""

    category: Category
    supercategory: str

    @property
    def name(self) -> str:
        """For comparisons."""
        return normalised(self.category.name)


@dataclass(frozen=True)
class FileClasses:
    """What the category ids of an annotation file stand for.

    Attributes:
        path: the annotation file.
        listed: its categories.
        vocabulary: the classes that the data set is packed with.
        index: class index of each id.
        reasons: why other ids have none.
        notes: what a user should know.
    """

    path: Path
    listed: tuple[ListedCategory, ...]
    vocabulary: Vocabulary
    index: Mapping[int, int]
    reasons: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def index_of(self, category_id: int) -> int:
        """The class index of an id.

        Raises:
            DataError: it has none.
        """
        if category_id not in self.index:
            reason = self.reasons.get(category_id, "which categories lacks")
            raise DataError(f"has category_id {category_id}, {reason}")
        return self.index[category_id]


def choose_classes(data: Any, path: Path, choice: str, name: str, things: bool = False) -> FileClasses:
    """The vocabulary for the category list of an annotation file.

    Args:
        data: content of the annotation file.
        path: the annotation file, for messages.
        choice: ``auto``: the packaged COCO classes if the file lists exactly those, or exactly the things
            among them, else the file's own;
            ``annotation``: the file's own; anything else: a packaged name or a vocabulary file, which must
            know every category of the file.
        name: what a vocabulary of the file's own categories is called.
        things: the file is in the instance format, which has no stuff and need not say ``isthing``.

    Raises:
        DataError: the file's categories are unusable, or the chosen vocabulary disagrees with them.
    """
    listed = _listed(data, path, things)
    stuff = next((one.category for one in listed if not one.category.isthing), None)
    if things and stuff is not None:
        raise DataError(
            f"{path}: category {stuff.id} '{stuff.name}' has isthing 0, but this format is of objects, "
            f"and mask AP cannot be measured on stuff: remove the category, or set isthing to 1; "
            f"prepare coco packs stuff, from the panoptic format"
        )
    vocabulary = _chosen(listed, path, choice, name)
    index = {one.category.id: vocabulary.index_of(one.category.id) for one in listed}
    return FileClasses(path, listed, vocabulary, index, notes=tuple(_renamed(listed, vocabulary, choice)))


def _renamed(listed: Sequence[ListedCategory], vocabulary: Vocabulary, choice: str) -> Iterator[str]:
    names = {one.category.name for one in listed}
    if len({one.name for one in listed}) < len(listed) and choice in _OWN:
        renamed = [category.name for category in vocabulary.categories if category.name not in names]
        yield f"categories of one name have their supercategory before it: {', '.join(renamed)}"


def match_classes(data: Any, path: Path, known: FileClasses) -> FileClasses:
    """The classes of an instance file beside a panoptic file: categories are matched by name, and by
    supercategory where several have one name.

    Raises:
        DataError: the file's categories are unusable.
    """
    listed = _listed(data, path, things=True)
    index: dict[int, int] = {}
    reasons = {}
    for one in listed:
        same = [other for other in known.listed if other.name == one.name]
        if len(same) > 1:
            same = [other for other in same if other.supercategory == one.supercategory] or same
        called = f"'{one.category.name}', which {known.path.name}"
        if len(same) != 1:
            reasons[one.category.id] = f"{called} {'has several times' if same else 'has no category of'}"
        elif not same[0].category.isthing:
            reasons[one.category.id] = f"{called} has as stuff, and stuff has no objects"
        elif known.index[same[0].category.id] in index.values():
            raise DataError(f"{path}: two categories have the name '{one.category.name}'")
        else:
            index[one.category.id] = known.index[same[0].category.id]
    return FileClasses(path, listed, known.vocabulary, index, reasons)


def _listed(data: Any, path: Path, things: bool) -> tuple[ListedCategory, ...]:
    listed = tuple(_category(item, path, things) for item in fields.list_of(data, "categories", path))
    for category_id, count in Counter(one.category.id for one in listed).items():
        if count > 1:
            raise DataError(f"{path}: {count} categories have the id {category_id}; it must be unique")
    return listed


def _category(item: Any, path: Path, things: bool) -> ListedCategory:
    try:
        fields.identifier(item, "id")
        fields.text(item, "name")
        fields.flag(item, "isthing", True if things else None)
        parsed = Vocabulary.from_json({"categories": [item]}, "categories").categories[0]
    except (DataError, VocabularyError) as error:
        shown = item.get("name", item.get("id")) if isinstance(item, Mapping) else item
        colon = "" if isinstance(error, DataError) else ":"
        raise DataError(
            f"{path}: category {shortened(shown)}{colon} {error}; data/README.md says what categories need"
        ) from error
    above = item.get("supercategory")
    return ListedCategory(parsed, above.strip() if isinstance(above, str) else "")


def _chosen(listed: Sequence[ListedCategory], path: Path, choice: str, name: str) -> Vocabulary:
    try:
        if choice not in _OWN:
            return _agreeing(load_vocabulary(choice), listed, path)
        official = load_vocabulary(OFFICIAL)
        things = Vocabulary("coco_things", tuple(c for c in official.categories if c.isthing))
        for known in (official, things) if choice == "auto" else ():
            if _is_same(known, listed):
                return known
        return _own(listed, path, name)
    except VocabularyError as error:
        raise DataError(f"{path}: {error}") from error


def _own(listed: Sequence[ListedCategory], path: Path, name: str) -> Vocabulary:
    """The file's own classes; those of one name get their supercategory before it."""
    times = Counter(one.name for one in listed)
    named = tuple(
        replace(
            one.category,
            name=f"{one.supercategory} {one.category.name}",
            official=one.category.official or one.category.name,
        )
        if times[one.name] > 1 and one.supercategory
        else one.category
        for one in listed
    )
    try:
        return Vocabulary(name, named)
    except VocabularyError as error:
        raise DataError(f"{path}: {error}: {_OWN_NAMES}") from error


def _agreeing(chosen: Vocabulary, own: Sequence[ListedCategory], path: Path) -> Vocabulary:
    known = {category.id: category for category in chosen.categories}
    for category in (one.category for one in own):
        expected = known.get(category.id)
        if expected is None or not _agree(expected, category):
            there = "has no such id" if expected is None else f"has {_described(expected)}"
            raise DataError(
                f"{path}: category {category.id} is {_described(category)}, but vocabulary '{chosen.name}' "
                f"{there}; use --vocabulary annotation to take the file's own categories"
            )
    return chosen


def _is_same(official: Vocabulary, own: Sequence[ListedCategory]) -> bool:
    known = {category.id: category for category in official.categories}
    same_ids = known.keys() == {one.category.id for one in own}
    return same_ids and all(_agree(known[one.category.id], one.category) for one in own)


def _agree(one: Category, other: Category) -> bool:
    names = {name.casefold() for name in (*one.names, one.official)}
    return other.name.casefold() in names and one.isthing == other.isthing


def _described(category: Category) -> str:
    return f"{'thing' if category.isthing else 'stuff'} '{category.official or category.name}'"
