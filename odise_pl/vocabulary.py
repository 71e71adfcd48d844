"""Class names, their synonyms and thing flags.

A vocabulary is an argument of training and inference, never state of a model. It comes from a packaged
list, a file, or what a user types; :func:`load_vocabulary` reads all of them.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from odise_pl.errors import UserError

_log = logging.getLogger(__name__)
# What can be measured on the classes of a data set: panoptic quality, mask AP, mean IoU. Semantic label maps
# allow the last alone, annotated objects the second.
MEASURES = ("panoptic", "instances", "semantic")
# "12:dog,puppy:stuff": the id is OpenSeg's notation, the kind is ours.
_ENTRY = re.compile(r"(?:(?P<id>\d+)\s*:)?(?P<names>[^:]*)(?::\s*(?P<kind>thing|stuff))?", re.I)
# OpenSeg's lists keep a line for ids that the data set does not use.
_UNUSED_ID = "invalid_class_id"
# Zero-width space and joiner, soft hyphen, byte order mark: editors leave them, nobody sees them.
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\u00ad\ufeff"))
_PLURAL = {"class": "classes", "entry": "entries", "line": "lines"}
_TAB = re.compile(r"[^\s,:] *\t *[^\s,:]")
_FILE = re.compile(
    r"[^,]*/[^,]*|.*\.(txt|json)|[^,]*\.\w+", re.I
)  # what is meant for a file, be it there or not


class VocabularyError(UserError, ValueError):
    """A vocabulary that cannot be found, read or used."""


def normalised(name: str) -> str:
    """A name by which names are compared: case and spaces do not count."""
    return " ".join(name.split()).casefold()


@dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
        id: the data set's own id, any non-negative integer; not the contiguous index.
        name: the name in tables and overlays, in words that a text encoder understands.
        synonyms: further names; a class is scored by the best of all its names.
        isthing: countable object (True) or stuff (False).
        official: the data set's own spelling where it differs from ``name`` ("wall-other-merged"). It is
            not shown to the text encoder.
    """

    id: int
    name: str
    synonyms: tuple[str, ...] = ()
    isthing: bool = True
    official: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that is shown to the text encoder, the main one first."""
        return (self.name, *self.synonyms)


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a data set or of a user; their order is the contiguous class index.

    Main names are unique (case and spacing aside), and so are ids. Synonyms may occur in several classes,
    as they do in ADE20K.

    Raises:
        VocabularyError: it is empty, or a class has no name, an empty synonym, or another's name or id.
    """

    name: str
    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        if not self.categories:
            raise VocabularyError(f"vocabulary '{self.name}' has no classes")
        for index, category in enumerate(self.categories):
            self._check_names(index, category)
        _check_unique(self.name, self.categories, "class", range(len(self)))

    def _check_names(self, index: int, category: Category) -> None:
        what = f"vocabulary '{self.name}': class {index} (id {category.id})"
        if not category.name.strip():
            raise VocabularyError(f"{what} has no name")
        if not all(synonym.strip() for synonym in category.synonyms):
            raise VocabularyError(f"{what}, '{category.name}', has an empty synonym; remove it")
        if category.id < 0:
            raise VocabularyError(f"{what}, '{category.name}': ids must not be negative")

    def __len__(self) -> int:
        return len(self.categories)

    @cached_property
    def _index(self) -> dict[int, int]:
        return {category.id: index for index, category in enumerate(self.categories)}

    def index_of(self, category_id: int) -> int:
        """The contiguous index of the data set's ``category_id``.

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
        """Which classes the ``training`` vocabulary knows too.

        A class is known if any of its names is exactly the name of any training class; case and spacing do
        not count, and the data sets' own spellings count as names. It decides how much the CLIP
        classifier weighs in the fusion of scores (section 3.3 of the paper).
        """
        known = {name for category in training.categories for name in _comparable(category)}
        return tuple(not known.isdisjoint(_comparable(category)) for category in self.categories)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads; empty and default fields are left out."""
        return {"name": self.name, "categories": [_category_to_json(item) for item in self.categories]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], name: str) -> Vocabulary:
        """Read ``{"categories": [{"id", "name", "synonyms"?, "isthing"?, "official"?}, ...]}``.

        Other keys are ignored, so the category list of a COCO annotation file is read too; there classes
        without ``isthing`` are things, as in COCO's detection format. Names are taken whole: a comma
        does not split them.

        Raises:
            VocabularyError: something is missing or of the wrong type.
        """
        items = data.get("categories") if isinstance(data, Mapping) else None
        if not isinstance(items, list):
            raise VocabularyError(f"vocabulary '{name}': expected an object with a list 'categories'")
        return cls(name, tuple(_category_from_json(item, index, name) for index, item in enumerate(items)))


def load_vocabulary(
    source: Vocabulary | str | Path | Sequence[Any], name: str | None = None, one_word: bool = False
) -> Vocabulary:
    """Read a vocabulary from wherever it is.

    Args:
        source: one of

            * the name of a packaged vocabulary, see :func:`packaged_vocabularies`;
            * a ``.json`` file, see :meth:`Vocabulary.from_json`, or the ``dataset.json`` of a shard set;
            * a text file with one class a line, ``name,synonym,...`` or OpenSeg's ``id:name,synonym,...``;
            * a sequence of such lines, where a class may also be a list of its names:
              ``["dog,puppy", ["park bench", "bench"], "grass:stuff"]``;
            * the same sequence as one string, ``'[dog, "park bench"]'``;
            * the text of such a file, which means what the file means;
            * one line of classes, ``"dog,park bench,grass:stuff"``;
            * a vocabulary, which is returned as it is.

            Classes of lines are things unless the line ends in ``:stuff`` (in any case), and their ids count
            from 0 unless the lines give them. A synonym that names another class is logged. Files
            are UTF-8, or UTF-16 or UTF-32 with a byte order mark.
        name: the vocabulary's name; by default the packaged name, the file's, or "custom".
        one_word: whether ``"dog"`` is a class, where words are asked for, or a misspelt name of a vocabulary.

    Raises:
        VocabularyError: it is not found, cannot be read, or is not valid.
    """
    if isinstance(source, Vocabulary):
        return source
    if isinstance(source, str):
        packaged = _packaged_directory() / f"{source}.json"
        source = packaged if source in packaged_vocabularies() else _file_or_text(source, one_word)
    if isinstance(source, Path):
        return _from_file(source, name)
    if isinstance(source, str):
        return _from_lines(source, name or "custom", one_line_is_one_class=False)
    return _from_entries(dict(enumerate(source, 1)), name or "custom")


def packaged_vocabularies() -> tuple[str, ...]:
    """The names of the vocabularies that come with the package."""
    return tuple(sorted(path.stem for path in _packaged_directory().glob("*.json")))


def _packaged_directory() -> Path:
    installed = Path(__file__).parent / "_vocabularies"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "data" / "vocabularies"


def _file_or_text(source: str, one_word: bool) -> Path | str:
    """A file that is there; else the text itself, unless it can only be meant for something that is not."""
    if len(source.splitlines()) > 1:
        return source
    if os.path.isfile(source):  # noqa: PTH113  Path's fails for what is too long for a path
        return Path(source)
    known = packaged_vocabularies()
    similar = any(name.startswith(f"{source}_") for name in known) or difflib.get_close_matches(source, known)
    is_list = _clean(source).startswith("[")
    is_text = is_list or (not _FILE.fullmatch(source) and (one_word or "," in source or ":" in source))
    if not source or similar or not is_text:
        raise VocabularyError(
            f"no vocabulary '{source}': it is neither a file nor a packaged vocabulary "
            f'({", ".join(known)}); a list of names is written [dog, "park bench"]'
        )
    return source


def _from_file(path: Path, name: str | None) -> Vocabulary:
    try:
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data))
        if path.suffix.lower() != ".json":
            return _from_lines(text, name or path.stem)
        content = json.loads(text)
        if isinstance(content, dict) and isinstance(content.get("vocabulary"), dict):  # of a shard set
            content = content["vocabulary"]
            name = name or content.get("name")
        return Vocabulary.from_json(content, name or path.stem)
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path}: is not text in UTF-8 ({error}); save it as UTF-8") from error
    except (OSError, ValueError, RecursionError) as error:
        raise VocabularyError(f"{path}: cannot be read as a vocabulary: {error}") from error


def _from_lines(text: str, name: str, one_line_is_one_class: bool = True) -> Vocabulary:
    """A class a line, with commas between its names; or a list as :func:`load_vocabulary` knows it.

    Args:
        text: of a file, or of an option.
        name: the vocabulary's.
        one_line_is_one_class: else commas on the only line stand between classes.
    """
    if re.search("[\0\ud800-\udfff]", text):  # surrogates: bytes on the command line that are no UTF-8
        raise VocabularyError(f"vocabulary '{name}' holds characters that are no text; save it as UTF-8")
    if _clean(text).startswith("["):
        return load_vocabulary(_parse_list(_clean(text)), name)
    lines = {number: line for number, line in enumerate(text.splitlines(), 1) if _trimmed(line)}
    if len(lines) == 1 and not one_line_is_one_class:
        return load_vocabulary(_trimmed(*lines.values()).split(","), name)
    return _from_entries(lines, name, "line")


def _clean(name: str) -> str:
    """A name without what cannot be seen, in Unicode's composed form; breaks within it become spaces."""
    shown = unicodedata.normalize("NFC", name.translate(_INVISIBLE))
    ends = [i for i, c in enumerate(shown) if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf")]
    return " ".join(shown[ends[0] : ends[-1] + 1].split()) if ends else ""


def _trimmed(entry: str) -> str:
    """Without the commas that spreadsheets put after the last name."""
    return _clean(entry).rstrip(", ")


def _parse_list(text: str) -> Sequence[Any]:
    try:
        return list(OmegaConf.create(text))
    except Exception as error:  # YAML, OmegaConf and interpolation each have their own family of errors
        raise VocabularyError(f"cannot read the list of class names {text}: {error}") from error


def _from_entries(entries: Mapping[int, Any], name: str, place: str = "entry") -> Vocabulary:
    """Classes from what an entry of a list says, or a line of a file, by its number from 1."""
    parsed = {n: _parse_entry(entry, f"vocabulary '{name}': {place} {n}:") for n, entry in entries.items()}
    numbered = sum(identifier is not None for identifier, _, _ in parsed.values())
    if numbered not in (0, len(parsed)):
        raise VocabularyError(
            f"vocabulary '{name}': {numbered} of {len(parsed)} classes have an id; give all or none"
        )
    found = {
        number: Category(index if identifier is None else identifier, names[0], names[1:], isthing)
        for index, (number, (identifier, names, isthing)) in enumerate(parsed.items())
        if _UNUSED_ID not in names
    }
    _check_unique(name, tuple(found.values()), place, tuple(found))
    vocabulary = Vocabulary(name, tuple(found.values()))
    _tell_ambiguous(vocabulary)
    return vocabulary


def _check_unique(name: str, categories: Sequence[Category], place: str, numbers: Sequence[int]) -> None:
    """Raises VocabularyError that names the places of two categories with one id or name."""
    for what in ("id", "name"):
        first: dict[int | str, str] = {}
        for category, number in zip(categories, numbers, strict=True):
            value = category.id if what == "id" else normalised(category.name)
            shown = f"{number} ('{category.name}', id {category.id})"
            if value in first:
                raise VocabularyError(
                    f"vocabulary '{name}': {_PLURAL[place]} {first[value]} and {shown} have the same {what}; "
                    f"give one another {what}, or remove it if both are one class"
                )
            first[value] = shown


def _tell_ambiguous(vocabulary: Vocabulary) -> None:
    """A synonym may be another class's name, as published lists have it, but it is rarely meant."""
    named = {normalised(name): index for index, name in enumerate(vocabulary.names)}
    found = [
        f"'{synonym}', a synonym of '{category.name}', is a class of its own"
        for index, category in enumerate(vocabulary.categories)
        for synonym in category.synonyms
        if named.get(normalised(synonym), index) != index
    ]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        _log.warning(
            "vocabulary '%s': %s%s: both get its score, and the class listed first wins a tie; remove one "
            "if they are meant to be told apart",
            *(vocabulary.name, found[0], more),
        )


def _parse_entry(entry: Any, where: str) -> tuple[int | None, tuple[str, ...], bool]:
    """Id (None if not given), names and thing flag of a line or of a list of names that stands ``where``."""
    parts = [entry] if isinstance(entry, str) else list(entry) if isinstance(entry, Sequence) else None
    if not parts or not all(isinstance(part, str) for part in parts):
        raise VocabularyError(
            f"{where} {entry!r} is neither a name nor a list of names (quote words such as 'on', 'off' and "
            f"numbers)"
        )
    if any(_TAB.search(part) for part in parts):
        raise VocabularyError(f"{where} {entry!r} has a tab between names; put commas there")
    match = _ENTRY.fullmatch(_trimmed(",".join(parts)))
    if match is None:
        raise VocabularyError(
            f"{where} {entry!r} has a colon that nothing but ':thing' or ':stuff' may follow; names with "
            f"colons can be given in a JSON file"
        )
    names = _distinct(_clean(name) for name in _trimmed(match["names"]).split(","))
    if "" in names:
        raise VocabularyError(f"{where} {entry!r} has an empty name")
    return int(match["id"]) if match["id"] else None, names, (match["kind"] or "thing").casefold() == "thing"


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _comparable(category: Category) -> set[str]:
    names = (*category.names, category.official) if category.official else category.names
    return {normalised(name) for name in names}


def _category_to_json(category: Category) -> dict[str, Any]:
    data: dict[str, Any] = {"id": category.id, "name": category.name}
    if category.synonyms:
        data["synonyms"] = list(category.synonyms)
    if category.official:
        data["official"] = category.official
    return data | {"isthing": category.isthing}


def _category_from_json(data: Any, index: int, vocabulary: str) -> Category:
    def field(key: str, default: Any, expected: type, description: str) -> Any:
        value = data.get(key, default) if isinstance(data, Mapping) else None
        if not isinstance(value, expected):
            raise VocabularyError(f"{what} has {key} {value!r}, expected {description}")
        return value

    what = f"vocabulary '{vocabulary}': class {index}"
    name = _clean(field("name", None, str, "text"))
    synonyms = field("synonyms", [], list, "a list of names")
    if not all(isinstance(synonym, str) for synonym in synonyms):
        raise VocabularyError(f"{what}, '{name}', has synonyms that are not text")
    return Category(
        id=field("id", None, int, "a whole number"),
        name=name,
        synonyms=tuple(synonym for synonym in _distinct(map(_clean, synonyms)) if synonym != name),
        isthing=bool(field("isthing", True, int, "true or false")),
        official=field("official", "", str, "text"),
    )


def rename(vocabulary: Vocabulary, source: Any) -> Vocabulary:
    """The classes of a data set under other names.

    Args:
        vocabulary: the data set's own.
        source: anything :func:`load_vocabulary` reads, the same classes in the same order; None keeps all.

    Raises:
        VocabularyError: the number of classes differs, or the same names or ids come in another order.
    """
    if source is None:
        return vocabulary
    names = load_vocabulary(source)
    if len(names) != len(vocabulary):
        raise VocabularyError(
            f"vocabulary '{names.name}' has {len(names)} classes, the data set '{vocabulary.name}' has "
            f"{len(vocabulary)}: give every class of the data set its names, in the same order"
        )
    _check_order(vocabulary, names)
    pairs = zip(vocabulary.categories, names.categories, strict=True)
    renamed = tuple(
        replace(own, name=new.name, synonyms=new.synonyms, official=own.official or own.name)
        for own, new in pairs
    )
    return Vocabulary(names.name, renamed)


def _check_order(own: Vocabulary, new: Vocabulary) -> None:
    """Raises VocabularyError if a list has the names or the ids of a data set in another order."""
    columns = {"names": [[normalised(name) for name in one.names] for one in (own, new)]}
    ids = [[str(category.id) for category in one.categories] for one in (own, new)]
    if ids[1] != [str(i) for i in range(len(new))]:  # else they were only counted
        columns["ids"] = ids
    for what, (here, there) in columns.items():
        if here != there and sorted(here) == sorted(there):
            place = next(i for i, pair in enumerate(zip(here, there, strict=True)) if len(set(pair)) > 1)
            raise VocabularyError(
                f"vocabulary '{new.name}' has the {what} of the data set '{own.name}' in another order: "
                f"class {place} is '{there[place]}', not '{here[place]}'; list them in the set's order"
            )
