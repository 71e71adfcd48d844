"""Annotation files with random changes are packed, or rejected with the name of a file."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mini_benchmarks as mini
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_coco import beside, make_coco

from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.coco_instances import read_coco_instances
from odise_pl.data.prepare.packing import prepare
from odise_pl.data.prepare.source import Source
from odise_pl.errors import UserError

SPLIT = "val2017"
STRANGE = [
    *(None, True, False, 0, -1, 7, 0.5, 1e9, float("nan"), float("inf"), 10**30, -(2**63), 10**400),
    *("", " ", "x", "2", "..", "../x.jpg", "/etc/passwd", "a\0b", "\ud800", "x" * 300, "a/./b"),
    *([], [[]], [1], [[1, 2, 3, 4]], [None], [["a"]], {}, {"id": 1}, {"size": [1, 1], "counts": "1"}),
]
Read = Callable[[], Source]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(document: Any, path: tuple[Any, ...], how: str, value: Any) -> Any:
    """The document with one value removed, duplicated or replaced."""
    if not path:
        return value
    document = copy.deepcopy(document)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if how == "remove":
        del parent[path[-1]]
    elif how == "repeat" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[path[-1]]))
    else:
        parent[path[-1]] = value
    return document


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Read]]:
    """By name: an annotation file, and the reader of its data set."""
    panoptic, instances = (tmp_path_factory.mktemp(name) for name in ("panoptic", "instances"))
    objects = beside(make_coco(panoptic, 1, split=SPLIT), "instances", [{"id": 41, "name": "disc"}])
    mini.coco_instances(instances, SPLIT)
    folder = panoptic / "annotations"
    return {
        "panoptic": (folder / f"panoptic_{SPLIT}.json", lambda: read_coco(panoptic, SPLIT)),
        "beside": (objects, lambda: read_coco(panoptic, SPLIT)),
        "captions": (folder / f"captions_{SPLIT}.json", lambda: read_coco(panoptic, SPLIT)),
        "instances": (
            instances / "annotations" / f"instances_{SPLIT}.json",
            lambda: read_coco_instances(instances, SPLIT),
        ),
    }


def check(read: Read, out: Path, skip_bad: bool) -> None:
    shutil.rmtree(out, ignore_errors=True)
    try:
        prepare(read(), out, 1, 10**6, skip_bad)
    except UserError as error:
        if not re.search(r"\.(json|jpg|png)", str(error)):
            raise AssertionError("the message names no file") from error
        return
    mini.samples(out)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_changed_annotation_file_is_packed_or_named(
    sets: dict[str, tuple[Path, Read]], data: st.DataObject
) -> None:
    path, read = sets[data.draw(st.sampled_from(sorted(sets)))]
    whole = path.read_bytes()
    document = json.loads(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(places(document))))
        how = data.draw(st.sampled_from(["replace", "replace", "remove", "repeat"]))
        document = changed(document, place, how, data.draw(st.sampled_from(STRANGE)))
    try:
        path.write_text(json.dumps(document))
        check(read, path.parent.parent / "out", data.draw(st.booleans()))
    finally:
        path.write_bytes(whole)
