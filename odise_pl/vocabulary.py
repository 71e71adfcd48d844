"""Class names, their synonyms and thing flags.

A vocabulary is an argument of training and inference, never state of a model. :func:`load_vocabulary` reads
all its forms.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from odise_pl.errors import UserError

# What can be measured: panoptic quality, mask AP, mean IoU. Class maps alone allow only the last, annotated
# objects alone only the second.
MEASURES = ("panoptic", "instances", "semantic")
# "12:dog,puppy:stuff": the id is OpenSeg's notation, the kind is ours
_ENTRY = re.compile(r"(?:(?P<id>\d+)\s*:)?(?P<names>[^:]*)(?::\s*(?P<kind>thing|stuff))?", re.I)
_UNUSED_ID = "invalid_class_id"  # in OpenSeg's lists, for ids that the data set does not use
_SHOWN = 12  # names in a message
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # surrogates: bytes on the command line that are not UTF-8
_LOOKS_LIKE_FILE = re.compile(r"[^,]*/[^,]*|.*\.(txt|json)|[^,]*\.\w+", re.I)
_JSON_DEFAULTS = {"synonyms": [], "isthing": True, "official": ""}
_JSON_TYPES = {"id": int, "name": str, "synonyms": list, "isthing": int, "official": str}


class VocabularyError(UserError, ValueError):
    """A vocabulary that cannot be found, read or used."""


def normalise_name(name: str) -> str:
    """The form for comparisons: without case and extra spaces."""
    return " ".join(name.split()).casefold()


@dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
        id: the data set's own id, not negative; not the contiguous index.
        name: the main name, in words that a text encoder understands.
        synonyms: other names; a class gets the score of its best name.
        isthing: countable object (True) or stuff (False).
        official: the data set's own spelling if it differs from ``name`` ("wall-other-merged"); not passed to
            the text encoder.
    """

    id: int
    name: str
    synonyms: tuple[str, ...] = ()
    isthing: bool = True
    official: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All names for the text encoder, the main one first."""
        return (self.name, *self.synonyms)

    def to_json(self) -> dict[str, Any]:
        """Plain data without empty fields."""
        data = {"id": self.id, "name": self.name, "synonyms": list(self.synonyms), "official": self.official}
        return {key: value for key, value in data.items() if value not in ([], "")} | {
            "isthing": self.isthing
        }

    def _compared(self) -> set[str]:
        return {normalise_name(name) for name in (*self.names, self.official) if name}


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a data set or of a user; their order is the contiguous class index.

    Ids and main names, without case and spacing, are unique. Synonyms may occur in several classes, as in
    ADE20K.

    Raises:
        VocabularyError: it is empty, or a class has no name, an empty synonym, or a duplicate name or id.
    """

    name: str
    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        what = f"vocabulary '{self.name}'"
        if not self.categories:
            raise VocabularyError(f"{what} has no classes")
        for index, category in enumerate(self.categories):
            if category.id < 0 or not all(name.strip() for name in category.names):
                raise VocabularyError(
                    f"{what}: class {index} (id {category.id}, '{category.name}') needs an id of at "
                    "least 0, a name, and no empty synonyms"
                )
        for field in ("id", "name"):
            first: dict[str, Category] = {}
            for category in self.categories:
                other = first.setdefault(normalise_name(str(getattr(category, field))), category)
                if other is not category:
                    raise VocabularyError(
                        f"{what}: '{other.name}' (id {other.id}) and '{category.name}' (id {category.id}) "
                        f"have the same {field}; change one, or merge the classes"
                    )

    def __len__(self) -> int:
        return len(self.categories)

    @cached_property
    def _index(self) -> dict[int, int]:
        return {category.id: index for index, category in enumerate(self.categories)}

    def index_of(self, category_id: int) -> int:
        """The contiguous index of a category id.

        Raises:
            VocabularyError: no class has this id.
        """
        if category_id not in self._index:
            raise VocabularyError(f"vocabulary '{self.name}' has no class with id {category_id}")
        return self._index[category_id]

    @cached_property
    def isthing(self) -> tuple[bool, ...]:
        """Whether each class is a thing."""
        return tuple(category.isthing for category in self.categories)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The main name of each class."""
        return tuple(category.name for category in self.categories)

    @cached_property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """All names of each class, the main one first."""
        return tuple(category.names for category in self.categories)

    def overlap(self, training: Vocabulary) -> tuple[bool, ...]:
        """Which classes share a name, without case and spacing, with the ``training`` vocabulary.

        Official spellings count as names. The result sets the weight of the CLIP classifier when scores are
        fused (section 3.3 of the paper).
        """
        known = set().union(*(category._compared() for category in training.categories))
        return tuple(not known.isdisjoint(category._compared()) for category in self.categories)

    def select(self, indices: Sequence[int]) -> Vocabulary:
        """The classes at these indices."""
        return replace(self, categories=tuple(self.categories[index] for index in indices))

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads."""
        return {"name": self.name, "categories": [category.to_json() for category in self.categories]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], name: str) -> Vocabulary:
        """Read ``{"categories": [{"id", "name", "synonyms"?, "isthing"?, "official"?}, ...]}``.

        Other keys are ignored, so COCO annotation files can be read; classes without ``isthing`` are things,
        as in COCO's detection format. A comma does not split a name.

        Raises:
            VocabularyError: something is missing or of the wrong type.
        """
        items = data.get("categories") if isinstance(data, Mapping) else None
        if not isinstance(items, list):
            raise VocabularyError(f"vocabulary '{name}': expected an object with a list 'categories'")
        return cls(name, tuple(_category_from_json(item, index, name) for index, item in enumerate(items)))


def load_vocabulary(source: Vocabulary | str | Path | Sequence[Any], one_word: bool = False) -> Vocabulary:
    """Read a vocabulary.

    Args:
        source: one of

            * the name of a packaged vocabulary, see :func:`packaged_vocabularies`;
            * a ``.json`` file, see :meth:`Vocabulary.from_json`, or the ``dataset.json`` of a shard set;
            * a text file with one class per line, ``name,synonym,...`` or OpenSeg's ``id:name,synonym,...``;
            * a sequence of such lines, where a class may also be a list of its names:
              ``["dog,puppy", ["park bench", "bench"], "grass:stuff"]``;
            * the same sequence as one string, ``'[dog, "park bench"]'``;
            * the text of such a file;
            * one line of classes, ``"dog,park bench,grass:stuff"``;
            * a vocabulary, which is returned unchanged.

            Classes in lines are things unless the line ends with ``:stuff``, in any case. Ids count from 0
            unless the lines have ids. Files are UTF-8, or UTF-16 or UTF-32 with a byte order mark.
            The vocabulary has the name of its file, or "custom".
        one_word: read ``"dog"`` as a class, not as a misspelt vocabulary name.

    Raises:
        VocabularyError: it is missing, unreadable or invalid.
    """
    if isinstance(source, Vocabulary):
        return source
    if isinstance(source, str):
        source = _find_file(source) or _typed_entries(source, one_word)
    if not isinstance(source, Path | Sequence):
        raise VocabularyError(f"{source} is no vocabulary: give a name, a file, or a list of names")
    return _from_file(source) if isinstance(source, Path) else _from_entries(source, "custom")


def packaged_vocabularies() -> tuple[str, ...]:
    """The names of the vocabularies that come with the package."""
    return tuple(sorted(path.stem for path in _packaged_directory().glob("*.json")))


def _packaged_directory() -> Path:
    installed = Path(__file__).parent / "_vocabularies"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "data" / "vocabularies"


def _find_file(source: str) -> Path | None:
    """The file, packaged or not, that a string names."""
    packaged = source in packaged_vocabularies()
    path = _packaged_directory() / f"{source}.json" if packaged else Path(source)
    return path if os.path.isfile(path) else None  # noqa: PTH113  Path.is_file fails for a long text


def _typed_entries(text: str, one_word: bool) -> Sequence[Any]:
    """Classes in lines, in brackets, or in one line with commas between them."""
    several = len(text.splitlines()) > 1 or text.lstrip().startswith("[")
    if not several and (_LOOKS_LIKE_FILE.fullmatch(text) or not (one_word or re.search("[,:]", text))):
        raise VocabularyError(
            f"no vocabulary '{text}': it is neither a file nor a packaged vocabulary "
            f'({", ".join(packaged_vocabularies())}); a list of names is written [dog, "park bench"]'
        )
    entries = _entries(text)
    in_one_line = len(entries) == 1 and not text.lstrip().startswith("[")
    return _without_trailing_commas(entries[0]).split(",") if in_one_line else entries


def _from_file(path: Path) -> Vocabulary:
    try:
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data))
        if path.suffix.lower() != ".json":
            return _from_entries(_entries(text), path.stem)
        content, name = json.loads(text), path.stem
        if isinstance(content, dict) and isinstance(content.get("vocabulary"), dict):  # of a shard set
            content = content["vocabulary"]
            name = content.get("name", name)
        return Vocabulary.from_json(content, name)
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise VocabularyError(f"{path}: cannot be read as a vocabulary in UTF-8: {error}") from error


def _entries(text: str) -> Sequence[Any]:
    """One class per line, or a list in brackets."""
    if _NOT_TEXT.search(text):
        raise VocabularyError("a vocabulary has characters that are not text; save it as UTF-8")
    if text.lstrip().startswith("["):
        return _parse_list(text)
    return [line for line in text.splitlines() if _without_trailing_commas(line)]


def _clean(name: str) -> str:
    """A name in Unicode's composed form, without invisible characters and extra spaces."""
    visible = (c for c in unicodedata.normalize("NFC", name) if c.isspace() or c.isprintable())
    return " ".join("".join(visible).split())


def _without_trailing_commas(entry: str) -> str:
    """Without the commas that spreadsheets append."""
    return _clean(entry).rstrip(", ")


def _parse_list(text: str) -> Sequence[Any]:
    try:
        found: Any = OmegaConf.to_container(OmegaConf.create(text))  # unresolved: words are data
        return list(found)
    except Exception as error:  # YAML and OmegaConf raise many kinds of errors
        raise VocabularyError(f'the list of names {text} is not written as [dog, "park bench"]') from error


def _from_entries(entries: Sequence[Any], name: str) -> Vocabulary:
    """Make classes from lines or from items of a list."""
    parsed = [_parse_entry(entry, f"vocabulary '{name}'") for entry in entries]
    numbered = sum(identifier is not None for identifier, _, _ in parsed)
    if numbered not in (0, len(parsed)):
        raise VocabularyError(
            f"vocabulary '{name}': {numbered} of {len(parsed)} classes have an id; give all or none"
        )
    categories = (
        Category(index if identifier is None else identifier, names[0], names[1:], isthing)
        for index, (identifier, names, isthing) in enumerate(parsed)
        if _UNUSED_ID not in names
    )
    return Vocabulary(name, tuple(categories))


def _parse_entry(entry: Any, where: str) -> tuple[int | None, tuple[str, ...], bool]:
    """Id (None if not given), names and thing flag of a line or of a list of names."""
    parts = [entry] if isinstance(entry, str) else list(entry) if isinstance(entry, Sequence) else None
    if not parts or not all(isinstance(part, str) for part in parts):
        raise VocabularyError(
            f"{where}: {entry!r} is neither a name nor a list of names (quote words such as 'on', 'off' and "
            "numbers)"
        )
    match = _ENTRY.fullmatch(_without_trailing_commas(",".join(parts)))
    names = [_clean(name) for name in _without_trailing_commas(match["names"] if match else "").split(",")]
    if match is None or "" in names:
        raise VocabularyError(
            f"{where}: {entry!r} is not written as [ID:]NAME[,SYNONYM...][:thing|:stuff]; put one comma "
            "between names, and names that contain a colon into a JSON file"
        )
    identifier, isthing = match["id"], (match["kind"] or "thing").casefold() == "thing"
    return int(identifier) if identifier else None, tuple(dict.fromkeys(names)), isthing


def _category_from_json(data: Any, index: int, vocabulary: str) -> Category:
    what = f"vocabulary '{vocabulary}': class {index}"
    if not isinstance(data, Mapping):
        raise VocabularyError(f"{what} is {data!r}, expected an object with id and name")
    values = _JSON_DEFAULTS | dict(data)
    for field, kind in _JSON_TYPES.items():
        if not isinstance(values.get(field), kind):
            raise VocabularyError(f"{what} has {field} {values.get(field)!r}, expected {kind.__name__}")
    if not all(isinstance(synonym, str) for synonym in values["synonyms"]):
        raise VocabularyError(f"{what} has synonyms that are not text")
    name, *others = dict.fromkeys(map(_clean, (values["name"], *values["synonyms"])))
    return Category(values["id"], name, tuple(others), bool(values["isthing"]), values["official"])


def rename(vocabulary: Vocabulary, source: Any) -> Vocabulary:
    """Rename the classes of a data set.

    Args:
        vocabulary: the data set's own.
        source: anything that :func:`load_vocabulary` reads, with the same classes in the same order; None
            keeps the names.

    Raises:
        VocabularyError: the number of classes differs, or the same names or ids have another order.
    """
    if source is None:
        return vocabulary
    new = load_vocabulary(source)
    if len(new) != len(vocabulary):
        raise VocabularyError(
            f"vocabulary '{new.name}' has {len(new)} classes, the data set '{vocabulary.name}' has "
            f"{len(vocabulary)}: give every class of the data set its names, in the same order"
        )
    _check_order(vocabulary, new)
    pairs = zip(vocabulary.categories, new.categories, strict=True)
    renamed = (
        replace(own, name=other.name, synonyms=other.synonyms, official=own.official or own.name)
        for own, other in pairs
    )
    return Vocabulary(new.name, tuple(renamed))


def seen_classes(vocabulary: Vocabulary, unseen: Any) -> tuple[int, ...]:
    """The indices of the classes that share no name with those of a zero-shot split.

    Args:
        vocabulary: of the labels.
        unseen: anything that :func:`load_vocabulary` reads.

    Raises:
        VocabularyError: a class of ``unseen`` is not in the vocabulary, all classes are unseen, or an unseen
            class shares a name with a seen one.
    """
    removed = load_vocabulary(unseen, one_word=True)
    found = zip(removed.names, removed.overlap(vocabulary), strict=True)
    if unknown := [name for name, known in found if not known]:
        some = ", ".join(vocabulary.names[:_SHOWN]) + (", ..." if len(vocabulary) > _SHOWN else "")
        raise VocabularyError(
            f"vocabulary '{vocabulary.name}' has no class {', '.join(unknown)}; it has {some}"
        )
    kept = tuple(i for i, flag in enumerate(vocabulary.overlap(removed)) if not flag)
    if not kept:
        raise VocabularyError(f"vocabulary '{vocabulary.name}' has no other classes")
    for i in set(range(len(vocabulary))) - set(kept):
        same = vocabulary.overlap(vocabulary.select([i]))
        if shared := [vocabulary.names[k] for k in kept if same[k]]:
            raise VocabularyError(
                f"in vocabulary '{vocabulary.name}', {vocabulary.names[i]} shares a name with "
                f"{', '.join(shared)}: both have to be unseen, or none"
            )
    return kept


def _check_order(own: Vocabulary, new: Vocabulary) -> None:
    """Raise VocabularyError if a list has the names or ids of a data set in another order."""
    for what in ("name", "id"):
        ours, theirs = (
            [normalise_name(str(getattr(category, what))) for category in one.categories]
            for one in (own, new)
        )
        unnumbered = theirs == [str(index) for index in range(len(new))]  # the list gives no ids of its own
        if ours != theirs and sorted(ours) == sorted(theirs) and not unnumbered:
            raise VocabularyError(
                f"vocabulary '{new.name}' has each {what} of the data set '{own.name}', but in another order"
            )
