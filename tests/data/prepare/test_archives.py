"""Data sets in zip archives give the same shards as in folders."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_coco import MiniCoco, make_coco, pack

from odise_pl.data.prepare.files import SourcePath
from odise_pl.data.prepare.packing import PROBLEMS
from odise_pl.data.prepare.tree import Tree
from odise_pl.data.records import DataError

ANNOTATIONS = "panoptic_annotations_trainval2017.zip"
MEMBER = b"annotations/panoptic_train2017.json"


def zipped(folder: Path, archive: Path) -> None:
    """``folder``, with its own name as the top folder, as ``archive``.zip."""
    with zipfile.ZipFile(archive.with_name(f"{archive.name}.zip"), "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent).as_posix())


def download(coco: MiniCoco, target: Path) -> Path:
    """The archives of COCO, with the inner archive of PNGs unpacked."""
    (target / "annotations").mkdir(parents=True)
    zipped(coco.images, target / coco.images.name)
    zipped(coco.pngs, target / "annotations" / coco.pngs.name)
    folder = shutil.copytree(coco.json.parent, target.parent / "unpacked" / "annotations")
    shutil.rmtree(folder / coco.pngs.name)
    zipped(folder, target / "panoptic_annotations_trainval2017")
    return target


def macos(root: Path) -> None:
    """Add the metadata files of macOS to a folder."""
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        path.with_name(".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def test_archives_give_same_shards_as_folders(tmp_path: Path) -> None:
    split = "v1.5 [x]"
    coco = make_coco(tmp_path / "coco", 3, split)
    pack(coco.root, tmp_path / "loose", split)
    macos(coco.root)
    shutil.copytree(coco.root, coco.root / "__MACOSX")
    pack(coco.root, tmp_path / "macos", split)
    folder = download(coco, tmp_path / "download")
    macos(folder)
    pack(folder, tmp_path / "packed", split)
    wanted = (tmp_path / "loose" / "dataset.json").read_bytes()
    for out in ("macos", "packed"):
        assert (tmp_path / out / "dataset.json").read_bytes() == wanted


def test_problems_name_archive_and_file(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 4)
    (coco.images / "000000000002.jpg").unlink()
    (coco.pngs / "000000000003.png").write_bytes(b"no png")
    folder = download(coco, tmp_path / "download")
    archive = folder / "train2017.zip"
    archive.write_bytes(spoiled(archive.read_bytes(), b"train2017/000000000004.jpg"))
    assert pack(folder, tmp_path / "out", skip_bad=True).counts.left_out == 3
    problems = (tmp_path / "out" / PROBLEMS).read_text()
    assert '"train2017.zip/train2017/000000000002.jpg"' in problems
    assert '"panoptic_train2017.zip/panoptic_train2017/000000000003.png"' in problems
    assert "cannot be unpacked (Error -3" in problems


def spoiled(archive: bytes, name: bytes) -> bytes:
    """A zip with damage in the content of a member."""
    start = archive.index(name) + len(name)
    return archive[:start] + b"\xff" * 20 + archive[start + 20 :]


@pytest.mark.parametrize(
    ("name", "spoil", "cause"),
    [
        ("train2017.zip", lambda content: content[: len(content) // 2], "is damaged.*cocodataset.org"),
        (ANNOTATIONS, lambda content: spoiled(content, MEMBER), "cannot be unpacked"),
    ],
)
def test_damaged_archive_is_named(
    tmp_path: Path, name: str, spoil: Callable[[bytes], bytes], cause: str
) -> None:
    archive = download(make_coco(tmp_path / "coco", 1), tmp_path / "download") / name
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(DataError, match=rf"{name}.*{cause}"):
        pack(archive.parent, tmp_path / "out")


def test_other_archives_must_be_unpacked(tmp_path: Path) -> None:
    folder = download(make_coco(tmp_path / "coco", 1), tmp_path / "download")
    (folder / "annotations" / "panoptic_train2017.zip").rename(tmp_path / "elsewhere.zip")
    with pytest.raises(DataError, match=rf"panoptic_train2017.zip inside {ANNOTATIONS}"):
        pack(folder, tmp_path / "out")
    (folder / "images.tar.gz").touch()
    with pytest.raises(DataError, match=r"images\.tar\.gz must be unpacked"):
        Tree(folder, "").need("images", "images.zip")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "root.zip" / "images").mkdir(parents=True)  # a folder with the name of an archive
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").touch()
    (tmp_path / "root.zip" / "images" / "scene").symlink_to(tmp_path / "elsewhere")
    folder = Tree(tmp_path / "root.zip", "").need("images", "")
    assert folder.names() == ["scene/1.jpg"]


def test_ambiguous_part_is_rejected(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"found images more than once \(.*a/images.*b/images"):
        Tree(tmp_path, "").find("images")
    assert Tree([tmp_path / "a"], "").find("images") == SourcePath(tmp_path / "a", "images")


def test_unpacked_files_take_precedence_over_archives(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"one")
    zipped(tmp_path / "images", tmp_path / "images")
    folder = Tree(tmp_path, "").need("images", "")
    assert folder.file("1.jpg") == SourcePath(tmp_path, "images/1.jpg")
    assert folder.names() == ["1.jpg"]
    shutil.rmtree(tmp_path / "images")
    assert Tree(tmp_path / "images.zip", "").need("images", "").file("1.jpg").read() == b"one"
