import json
from pathlib import Path

import pytest

from odise_pl.vocabulary import (
    Category,
    Vocabulary,
    VocabularyError,
    load_vocabulary,
    packaged_vocabularies,
    rename,
)

PACKAGED = {  # classes, things
    "ade20k_150": (150, 100),
    "ade20k_847": (847, 0),
    "cityscapes_19": (19, 8),
    "coco_panoptic": (133, 80),
    "coco_stuff_171": (171, 80),
    "lvis_1203": (1203, 1203),
    "pascal_context_459": (459, 0),
    "pascal_context_59": (59, 0),
    "pascal_voc_20": (20, 0),
    "pascal_voc_21": (21, 0),
}


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_vocabulary(name: str, tmp_path: Path) -> None:
    assert packaged_vocabularies() == tuple(sorted(PACKAGED))
    loaded = load_vocabulary(name)
    assert loaded.name == name
    assert (len(loaded), sum(loaded.isthing)) == PACKAGED[name]
    for label in loaded.labels:
        assert len(set(label)) == len(label)
        assert all(text == " ".join(text.split()) and "," not in text for text in label)
    assert [loaded.index_of(category.id) for category in loaded.categories] == list(range(len(loaded)))
    assert Vocabulary.from_json(json.loads(json.dumps(loaded.to_json())), name) == loaded
    # the same list in OpenSeg's format, also where a synonym is another class's name
    file = tmp_path / "openseg.txt"
    lines = [f"{c.id}:{','.join(c.names)}" for c in loaded.categories]
    file.write_text("\n".join(["99999:invalid_class_id", *lines]), encoding="utf-8")
    same = load_vocabulary(file)
    assert same.labels == loaded.labels
    assert [c.id for c in same.categories] == [c.id for c in loaded.categories]


def test_coco_names_are_english_with_official_spelling() -> None:
    coco = load_vocabulary("coco_panoptic")
    wall = coco.categories[coco.index_of(199)]
    assert (wall.name, wall.official, wall.isthing) == ("wall", "wall-other-merged", False)
    assert not [name for label in coco.labels for name in label if "-" in name]
    strings = [name for label in coco.labels for name in label]
    assert len(set(strings)) == len(strings), "a name of two classes cannot be told apart"
    assert coco.names[0] == "person"
    assert coco.index_of(200) == 132


def test_ade_names_are_split_into_synonyms() -> None:
    small, full = load_vocabulary("ade20k_150"), load_vocabulary("ade20k_847")
    assert small.labels[small.index_of(6)] == ("road", "route")
    assert small.names[8] == "window"
    assert full.labels[1] == ("building", "edifice")
    assert full.index_of(312) == 1
    # Three published entries begin with "bag"; each keeps all its names but leads with its own.
    bags = {label[0]: set(label) for label in full.labels if "bag" in label}
    assert set(bags) == {"bag", "traveling bag", "handbag"}
    assert bags["handbag"] == {"bag", "handbag", "pocketbook", "purse"}


def test_overlap_compares_all_names() -> None:
    training = Vocabulary(
        "training", (Category(1, "couch", ("sofa",)), Category(2, "Dog"), Category(3, "caf\u00e9"))
    )
    test = load_vocabulary(["settee, Sofa ", "dog", "dogs", "hot\xa0dog", "cafe\u0301"])
    assert test.overlap(training) == (True, True, False, False, True)
    assert training.overlap(test) == (True, True, True)


def test_overlap_of_benchmarks_with_coco() -> None:
    coco = load_vocabulary("coco_panoptic")
    assert all(coco.overlap(coco))
    official = load_vocabulary(["wall-other-merged", "spaceship"])
    assert official.overlap(coco) == (True, False), "an official spelling is a name"
    assert all(load_vocabulary("pascal_voc_21").overlap(coco)), "every class of VOC occurs in COCO"
    ade = load_vocabulary("ade20k_150")
    known = dict(zip(ade.names, ade.overlap(coco), strict=True))
    assert [known[name] for name in ("sofa", "sidewalk", "chandelier")] == [True, True, False]


def test_list_of_names() -> None:
    loaded = load_vocabulary(["dog,puppy", ["park bench", "bench", "pet"], "cat,pet", "grass: STUFF"])
    assert loaded == load_vocabulary('[[dog, puppy], ["park bench", bench, pet], [cat, pet], grass:stuff]')
    assert loaded == load_vocabulary(loaded)
    assert loaded.name == "custom"
    assert loaded.labels == (("dog", "puppy"), ("park bench", "bench", "pet"), ("cat", "pet"), ("grass",))
    assert loaded.isthing == (True, True, True, False)
    assert [category.id for category in loaded.categories] == [0, 1, 2, 3]


FARM = "cow,cattle\nhay bale\nmeadow:stuff\n"


@pytest.mark.parametrize(("encoding", "end"), [("utf-8-sig", "\r\n"), ("utf-16", "\n")])
def test_text_file_of_any_encoding_and_line_ending(tmp_path: Path, encoding: str, end: str) -> None:
    file = tmp_path / "farm.txt"
    file.write_bytes(FARM.replace("\n", end).encode(encoding))
    loaded = load_vocabulary(file)
    assert (loaded.name, loaded.labels) == ("farm", (("cow", "cattle"), ("hay bale",), ("meadow",)))
    assert loaded.isthing == (True, True, False)
    assert load_vocabulary(str(file)) == loaded


def test_invisible_characters_and_trailing_commas_are_removed(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    line = "\u200bdo\u200bg\u200b\xa0,\tpuppy:thing,,"
    file.write_text(f"\n,,,\n \t\n{line}\n\u200b\n\n", encoding="utf-8", newline="")
    assert load_vocabulary(file).labels == load_vocabulary([line]).labels == (("dog", "puppy"),)


def test_text_of_a_file_equals_the_file(tmp_path: Path) -> None:
    file = tmp_path / "custom.txt"
    for text in (FARM, "3:cow,cattle\r\n\r\n5:meadow:stuff", "[cow,\n meadow:stuff]"):
        file.write_text(text, encoding="utf-8", newline="")
        assert load_vocabulary(text.rstrip("\n")) == load_vocabulary(file)  # as $(cat FILE) has it


def test_one_line_has_several_classes() -> None:
    expected = (("dog",), ("park bench",), ("grass",))
    for line in ("dog,park bench,grass:stuff", "\n dog, park bench,\tgrass:stuff, \r\n"):
        assert load_vocabulary(line).labels == expected
        assert load_vocabulary(line).isthing == (True, True, False)
    assert load_vocabulary("dog", one_word=True).labels == (("dog",),)
    assert load_vocabulary("St. Bernard,7.5 mm drill").names == ("St. Bernard", "7.5 mm drill")
    assert len(load_vocabulary(",".join(f"name {i}" for i in range(300)))) == 300  # longer than a path may be


def test_unusual_file_names(tmp_path: Path) -> None:
    for name in ("a,b.txt", "[x]", "münchen.txt"):
        (tmp_path / name).write_text("dog,puppy", encoding="utf-8")
        assert load_vocabulary(str(tmp_path / name)).labels == (("dog", "puppy"),)
    with pytest.raises(VocabularyError, match=r"a,c\.txt"):
        load_vocabulary(str(tmp_path / "a,c.txt"))


def test_coco_annotation_file(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    categories = [
        {"id": 3, "name": "gear", "supercategory": "machine"},
        {"id": 7, "name": "oil", "isthing": 0, "synonyms": ["oil", "grease", "grease"]},
    ]
    file.write_text(json.dumps({"images": [], "categories": categories}), encoding="utf-8")
    loaded = load_vocabulary(file)
    assert loaded.labels == (("gear",), ("oil", "grease"))
    assert loaded.isthing == (True, False)
    assert loaded.index_of(7) == 1
    with pytest.raises(VocabularyError, match="id 8"):
        loaded.index_of(8)


def test_manifest_of_shard_set(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    own = Vocabulary("mine", (Category(3, "dog", ("puppy",)), Category(5, "grass", (), False)))
    path.write_text(json.dumps({"format": 1, "name": "a set", "vocabulary": own.to_json()}))
    assert load_vocabulary(path) == own


@pytest.mark.parametrize("lines", [["grass", "Dog"], ["5:lawn", "3:hound"]])
def test_rename_rejects_other_order(lines: list[str]) -> None:
    own = Vocabulary("mine", (Category(3, "dog"), Category(5, "grass", (), False)))
    with pytest.raises(VocabularyError, match=r"'custom' .* 'mine', but in another order"):
        rename(own, lines)
    assert rename(own, ["dog", "lawn"]).names == ("dog", "lawn")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ((), "'test' has no classes"),
        ((Category(1, "dog"), Category(2, " DOG")), r"'dog' \(id 1\) and ' DOG' \(id 2\).* same name"),
        ((Category(1, "dog"), Category(1, "cat")), r"'dog' \(id 1\) and 'cat' \(id 1\).* same id"),
        ((Category(1, "dog", ("",)),), r"class 0 .*'dog'.* synonyms"),
        ((Category(-1, "dog"),), "id -1.* id"),
    ],
)
def test_invalid_vocabulary(categories: tuple[Category, ...], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary("test", categories)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("coco", r"'coco'.*coco_panoptic.*\[dog"),
        ("missing.json", "'missing.json'"),
        ("dog,cat,dog", "'dog'"),
        (["1:dog", "cat"], "1 of 2 classes have an id"),
        (["dog,,puppy"], "'dog,,puppy'"),
        (["dog", []], r"\[\] is neither a name"),
        (b"caf\xe9\ndog".decode(errors="surrogateescape"), "UTF-8"),
        ("[dog, on]", "True is neither a name.*quote"),
        (["grass:stuf"], "'grass:stuf'.*:stuff"),
    ],
)
def test_invalid_source_is_named(source: str | list[object], name: str) -> None:
    with pytest.raises(VocabularyError, match=name):
        load_vocabulary(source)


def test_words_are_data_not_references() -> None:
    with pytest.raises(VocabularyError, match=r"\$\{oc\.env:HOME\}"):  # a colon is none of a name
        load_vocabulary('["${oc.env:HOME}", dog]')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", "Hündin\n".encode("cp1252"), "UTF-8"),
        ("list.txt", b"dog\0\n", "UTF-8"),
        ("bad.json", "Hündin\n".encode("cp1252"), "UTF-8"),
        ("bad.json", b"{", "cannot be read"),
        ("bad.json", b'{"categories": ["dog"]}', "class 0 is 'dog'"),
        ("bad.json", b'{"categories": [{"id": 1}]}', "class 0 has name None"),
        ("bad.json", b'{"categories": [{"id": 1, "name": "dog", "isthing": "no"}]}', "isthing 'no'"),
        ("bad.json", b'{"categories": [{"id": 1, "name": "dog", "synonyms": [2]}]}', "synonyms"),
    ],
)
def test_invalid_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VocabularyError, match=f"{name}: .*{message}"):
        load_vocabulary(tmp_path / name)
