"""Data sets in archives give the same shards as in folders."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_coco import MiniCoco, make_coco, pack

from odise_pl.data.manifest import open_shard_set
from odise_pl.data.prepare.files import SourceFile
from odise_pl.data.prepare.packing import PROBLEMS
from odise_pl.data.prepare.tree import Folder, Tree
from odise_pl.data.records import DataError

Pack = Callable[[Path, Path], Path]


def zipped(folder: Path, archive: Path) -> Path:
    """``folder``, with its own name as the top folder, as ``archive``.zip."""
    with zipfile.ZipFile(archive.with_name(f"{archive.name}.zip"), "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent).as_posix())
    return Path(str(file.filename))


def tarred(folder: Path, archive: Path, suffix: str = ".tar", mode: str = "w") -> Path:
    path = archive.with_name(archive.name + suffix)
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        file.add(folder, f"./{folder.name}")
    return path


def gzipped(folder: Path, archive: Path) -> Path:
    return tarred(folder, archive, ".tar.gz", "w:gz")


def download(coco: MiniCoco, target: Path, pack_one: Pack = zipped) -> Path:
    """The archives of COCO, with the inner archive of PNGs unpacked."""
    (target / "annotations").mkdir(parents=True)
    pack_one(coco.images, target / coco.images.name)
    pack_one(coco.pngs, target / "annotations" / coco.pngs.name)
    folder = shutil.copytree(coco.json.parent, target.parent / "unpacked" / "annotations")
    shutil.rmtree(folder / coco.pngs.name)
    pack_one(folder, target / "panoptic_annotations_trainval2017")
    return target


def hashes(folder: Path) -> list[str]:
    return [shard.sha256 for shard in open_shard_set(folder).manifest.shards]


def macos(root: Path) -> None:
    """Add the metadata files of macOS to a folder."""
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        path.with_name(".DS_Store").write_bytes(b"\0\0\0\1Bud1")


@pytest.mark.parametrize("pack_one", [zipped, tarred, gzipped])
def test_archives_give_same_shards_as_folders(tmp_path: Path, pack_one: Pack) -> None:
    split = "v1.5 [x]"
    coco = make_coco(tmp_path / "coco", 18, split)
    pack(coco.root, tmp_path / "loose", split)
    macos(coco.root)
    shutil.copytree(coco.root, coco.root / "__MACOSX")
    pack(coco.root, tmp_path / "macos", split)
    folder = download(coco, tmp_path / "download", pack_one)
    macos(folder)
    pack(folder, tmp_path / "packed", split, workers=2 if pack_one is gzipped else 1)
    for out in ("macos", "packed"):
        assert hashes(tmp_path / out) == hashes(tmp_path / "loose")
    one, other = ((tmp_path / out / "dataset.json").read_bytes() for out in ("packed", "loose"))
    assert one == other


def test_problems_name_archive_and_file(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 3)
    (coco.images / "000000000002.jpg").unlink()
    (coco.pngs / "000000000003.png").write_bytes(b"no png")
    folder = download(coco, tmp_path / "download")
    with pytest.raises(DataError):
        pack(folder, tmp_path / "out")
    problems = (tmp_path / "out" / PROBLEMS).read_text()
    assert '"train2017.zip/train2017/000000000002.jpg"' in problems
    assert '"panoptic_train2017.zip/panoptic_train2017/000000000003.png"' in problems


def flagged(archive: bytes, encrypted: int, method: int) -> bytes:
    """A zip whose members are marked as encrypted or compressed by another method."""
    content = bytearray(archive)
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + place] |= encrypted
            content[start + place + 2] = method or content[start + place + 2]
            start = content.find(mark, start + 4)
    return bytes(content)


def spoiled(archive: bytes, name: bytes) -> bytes:
    """A zip with damage in the content of a member."""
    start = archive.index(name) + len(name) + 30
    return archive[:start] + b"\xff" * 20 + archive[start + 20 :]


ANNOTATIONS = "panoptic_annotations_trainval2017.zip"
MEMBER = "annotations/panoptic_train2017.json"
DAMAGES: list[tuple[Pack, str, Callable[[bytes], bytes], str]] = [
    (zipped, "train2017.zip", lambda content: content[: len(content) // 2], "is damaged.*cocodataset.org"),
    (gzipped, "train2017.tar.gz", lambda c: c[:30] + b"\xff" * 40 + c[70:], "is damaged"),
    (zipped, ANNOTATIONS, lambda content: flagged(content, 1, 0), "password"),
    (zipped, ANNOTATIONS, lambda content: flagged(content, 0, 9), "compression"),
    (zipped, ANNOTATIONS, lambda content: spoiled(content, MEMBER.encode()), "damaged"),
]


@pytest.mark.parametrize(("pack_one", "name", "spoil", "cause"), DAMAGES)
def test_damaged_archive_is_named(
    tmp_path: Path, pack_one: Pack, name: str, spoil: Callable[[bytes], bytes], cause: str
) -> None:
    archive = download(make_coco(tmp_path / "coco", 2), tmp_path / "download", pack_one) / name
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(DataError, match=rf"{name}.*{cause}"):
        pack(archive.parent, tmp_path / "out")


def test_damaged_archive_member_is_a_problem(tmp_path: Path) -> None:
    archive = download(make_coco(tmp_path / "coco", 2), tmp_path / "download") / "train2017.zip"
    archive.write_bytes(spoiled(archive.read_bytes(), b"train2017/000000000002.jpg"))
    assert pack(archive.parent, tmp_path / "out", skip_bad=True).counts.left_out == 1
    (problem,) = json.loads((tmp_path / "out" / PROBLEMS).read_text())["problems"]
    assert problem["file"] == "train2017.zip/train2017/000000000002.jpg"
    assert "damaged" in problem["cause"]


def test_nested_archive_must_be_unpacked(tmp_path: Path) -> None:
    folder = download(make_coco(tmp_path / "coco", 1), tmp_path / "download")
    inner = folder / "annotations" / "panoptic_train2017.zip"
    with zipfile.ZipFile(folder / ANNOTATIONS, "a") as archive:
        archive.write(inner, f"annotations/{inner.name}")
    inner.unlink()
    with pytest.raises(DataError, match=rf"{inner.name} inside {ANNOTATIONS}, which must be unpacked"):
        pack(folder, tmp_path / "out")


def test_unsupported_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "images.tar.xz").touch()
    with pytest.raises(DataError, match=r"images\.tar\.xz.*unpack"):
        Tree(tmp_path, "").need_folder("images", "images.zip")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "root.zip" / "images").mkdir(parents=True)  # a folder with the name of an archive
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").touch()
    (tmp_path / "root.zip" / "images" / "scene").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "root.zip" / "images")
    assert Tree(tmp_path / "root.zip", "").need_folder("images", "").names() == ["scene/1.jpg"]


def test_ambiguous_part_is_rejected(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"found images more than once \(.*a/images.*b/images"):
        Tree(tmp_path, "").folder("images")
    assert Tree([tmp_path / "a"], "").folder("images") == Folder(tmp_path / "a", "images/")


def test_unpacked_files_take_precedence_over_archives(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"one")
    zipped(tmp_path / "images", tmp_path / "images")
    folder = Tree(tmp_path, "").need_folder("images", "")
    assert folder.file("1.jpg") == SourceFile(tmp_path, "images/1.jpg")
    assert folder.names() == ["1.jpg"]
