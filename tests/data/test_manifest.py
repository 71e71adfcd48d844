"""What ``dataset.json`` says is data: never a path, a URL or a command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import pack
from mini_coco import make_coco

from odise_pl.data.manifest import check_shards, missing_shards
from odise_pl.data.records import DataError

NAMES = [
    *("../x.tar", "/etc/x.tar", "a/x.tar", "a\\x.tar", "..", ".", "", ".x.tar", "-x.tar", "x y.tar"),
    *("pipe:touch FILE", "x.tar; touch FILE; cat y", "$(touch FILE).tar", "`touch FILE`.tar"),
    *("x|touch FILE", "x&touch FILE", "http://host/x.tar", "file:x.tar", "x*.tar", "x?.tar", "x[0].tar"),
    *("x-{000..100}.tar", "~x.tar", "x#.tar", "x%2f.tar", "x'.tar", 'x".tar'),
    "x" * 5000,
    *("x\n.tar", "x\0.tar", "x\u202e.tar", "x\ud800.tar", None, 7, True, ["x.tar"], {"x": 1}),
]


def described(shards: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The description of a set alone, with something changed."""
    content = json.loads((shards / "dataset.json").read_text())
    change(content)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_shard_name_is_a_plain_file_name(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: object
) -> None:
    proof = tmp_path / "proof"
    name = name.replace("FILE", str(proof)) if isinstance(name, str) else name
    folder = described(shards, tmp_path, lambda data: data["shards"][0].update(name=name))
    monkeypatch.chdir(folder)
    for source in (folder, ".", "dataset.json", f"file://{folder}", f"pipe:cat {folder}/dataset.json"):
        with pytest.raises(DataError, match=r"dataset\.json.*name"):
            check_shards(source)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["coco-000000.tar", "münchen_1.5-7.tar", "数据.tar", "2024", "_x"])
def test_letters_and_digits_of_any_script_are_plain(shards: Path, tmp_path: Path, name: str) -> None:
    folder = described(shards, tmp_path, lambda data: data["shards"][0].update(name=name))
    (folder / name).touch()
    assert check_shards(folder).urls[0] == str(folder / name)


def test_a_folder_that_looks_like_a_command_stays_a_folder(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pipe:touch proof;"
    folder.mkdir()
    described(shards, folder, lambda _: None)
    first = json.loads((folder / "dataset.json").read_text())["shards"][0]["name"]
    (folder / first).write_bytes((shards / first).read_bytes())
    (folder / "other.json").write_bytes((folder / "dataset.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    for source in (f"./{folder.name}", f"./{folder.name}/dataset.json", f"./{folder.name}/other.json"):
        found = check_shards(source)
        assert found.urls[0] not in missing_shards(found)
        assert all(url.startswith("./pipe:") for url in found.urls)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", ["x.json", "dataset.json", "~x", "./~x"])
def test_a_folder_may_have_any_name(
    shards: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / name))
    (folder / "other.json").write_bytes((folder / "dataset.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    for source in (name, f"{name}/dataset.json", f"{name}/other.json"):
        assert not missing_shards(check_shards(source))


@pytest.mark.parametrize("value", ["7", -1, True, None, 1.0, 10**30, [1], float("inf")], ids=str)
@pytest.mark.parametrize("path", ["shards.0.samples", "shards.0.bytes", "counts.segments", "max_shard_bytes"])
def test_a_count_is_a_whole_number(shards: Path, tmp_path: Path, path: str, value: object) -> None:
    with pytest.raises(DataError, match=rf"dataset\.json.*{path.rpartition('.')[2]}"):
        check_shards(described(shards, tmp_path, put(path, value)))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("name", 5, "name"),
        ("shards.0.sha256", 5, "sha256"),
        ("source.split", ["x"], "split"),
        ("captioning", {"model": 1, "sha256": "", "max_tokens": 2, "shards": ""}, "model"),
        ("vocabulary.name", 5, "vocabulary.name"),
        *(("vocabulary.categories.0.isthing", value, "isthing") for value in (5, None, "1", 1.0, -1)),
        *(("vocabulary.categories.0.id", value, "id") for value in (True, None, "1", 2**70)),
        ("vocabulary.categories", {}, "categories"),
        ("vocabulary.categories.0", "dog", "dog"),
        ("vocabulary.categories.0", {"id": 1, "name": "dog"}, "isthing"),
        *(("measures", value, "measures") for value in ("panoptic", ["speed"], [])),
        ("counts.samples", 22, "counts.samples"),
        ("shards.0.samples", 10**9, "counts.samples"),
        *((path, value, "") for path in ("shards", "shards.0", "counts") for value in ("x", [1], {}, None)),
    ],
    ids=str,
)
def test_fields_of_the_wrong_kind_are_named(
    shards: Path, tmp_path: Path, path: str, value: object, named: str
) -> None:
    with pytest.raises(DataError, match=rf"dataset\.json.*{named}"):
        check_shards(described(shards, tmp_path, put(path, value)))


def put(path: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Sets the value at a path of keys and indices."""

    def change(data: Any) -> None:
        *above, last = (int(key) if key.isdigit() else key for key in path.split("."))
        for key in above:
            data = data[key]
        data[last] = value

    return change


def test_a_shard_is_not_read_twice(shards: Path, tmp_path: Path) -> None:
    def repeat(data: dict[str, Any]) -> None:
        data["shards"].append(data["shards"][0])
        data["counts"]["samples"] += data["shards"][0]["samples"]

    with pytest.raises(DataError, match=r"dataset\.json.*same name"):
        check_shards(described(shards, tmp_path, repeat))


def test_json_nested_without_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"dataset\.json"):
        check_shards(tmp_path)


@pytest.mark.parametrize("split", ["münchen", "v1.5 {a,b}", "$(x)"])
def test_shards_of_any_split_have_plain_names(tmp_path: Path, split: str) -> None:
    make_coco(tmp_path / "coco", 3, split=split)
    assert pack(tmp_path / "coco", tmp_path / "out", split=split) == 0
    found = check_shards(tmp_path / "out")
    assert not missing_shards(found)
