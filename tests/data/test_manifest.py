"""``dataset.json``: names in it are never read as paths, URLs or commands, and invalid fields are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_coco import make_coco, pack

from odise_pl.data.manifest import find_missing_shards, open_shard_set
from odise_pl.data.records import DataError

NAMES = [
    *("../x.tar", "/etc/x.tar", "a\\x.tar", "", ".x.tar", "-x.tar", "x" * 5000, "x\ud800.tar", None, 7),
    *("pipe:touch FILE", "x.tar; touch FILE; cat y", "http://host/x.tar", "x-{000..100}.tar", "x\n.tar"),
]


def described(shards: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A folder with only the changed manifest of a set."""
    content = json.loads((shards / "dataset.json").read_text())
    change(content)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_unsafe_shard_name_is_rejected(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: object
) -> None:
    proof = tmp_path / "proof"
    name = name.replace("FILE", str(proof)) if isinstance(name, str) else name
    folder = described(shards, tmp_path, lambda data: data["shards"][0].update(name=name))
    monkeypatch.chdir(folder)
    for source in (folder, ".", f"pipe:cat {folder}/dataset.json"):
        with pytest.raises(DataError, match=r"dataset\.json.*name"):
            open_shard_set(source)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["pipe:touch proof;", "x.json", "~x"])
def test_folder_named_like_a_command_file_or_home_is_found(
    shards: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / name))
    (folder / "other.json").write_bytes((folder / "dataset.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    for source in (folder, f"./{name}", f"./{name}/dataset.json", f"./{name}/other.json", f"file://{folder}"):
        found = open_shard_set(source)
        assert not find_missing_shards(found)
        assert all(url.startswith("/") for url in found.urls)
    assert not (tmp_path / "proof").exists()


def put(*path: Any, value: object) -> Callable[[dict[str, Any]], object]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        *((("shards", 0, "bytes"), value, "bytes") for value in ("7", -1, None, 10**30)),
        (("counts", "segments"), -1, "segments"),
        (("max_shard_bytes",), "7", "max_shard_bytes"),
        (("format",), 2, "format"),
        (("source", "split"), ["x"], "split"),
        (("source",), None, "expected an object"),
        (("captioning",), {"model": 1, "sha256": "", "max_tokens": 2, "shards": ""}, "model"),
        (("vocabulary", "name"), 5, "vocabulary.*name"),
        (("vocabulary", "categories", 1, "name"), "square", "square"),
        *((("measures",), value, "measures") for value in ("panoptic", ["speed"], [])),
        (("counts", "samples"), 22, "counts.samples"),
        (("shards", 0, "samples"), 10**9, "counts.samples"),
        (("shards", 0), "x", "expected an object"),
        (("shards", 0, "name"), "train2017-000001.tar", "same name"),
    ],
    ids=str,
)
def test_invalid_field_is_named(
    shards: Path, tmp_path: Path, path: tuple[Any, ...], value: object, named: str
) -> None:
    with pytest.raises(DataError, match=rf"dataset\.json.*{named}"):
        open_shard_set(described(shards, tmp_path, put(*path, value=value)))


@pytest.mark.parametrize("content", ["[" * 200_000, "[]", "{", b"\xff"], ids=lambda value: str(value)[:4])
def test_invalid_manifest_is_named(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_shard_set(tmp_path)


def test_shards_of_any_split_have_plain_file_names(tmp_path: Path) -> None:
    split = "münchen v1.5 {a,b} $(x)"
    make_coco(tmp_path / "coco", 3, split=split)
    pack(tmp_path / "coco", tmp_path / "out", split)
    assert not find_missing_shards(open_shard_set(tmp_path / "out"))
