"""A data set in its archives as downloaded gives the shards of the unpacked one."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import pack
from mini_coco import make_coco

from odise_pl.data.files import SourceFile
from odise_pl.data.manifest import check_shards
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


def download(root: Path, target: Path, pack_one: Pack) -> Path:
    """The archives of COCO: one of images, and one of annotations with the PNGs in another inside."""
    target.mkdir()
    pack_one(root / "train2017", target / "train2017")
    inner = root / "annotations" / "panoptic_train2017"
    zipped(inner, inner)
    shutil.rmtree(inner)
    pack_one(root / "annotations", target / "panoptic_annotations_trainval2017")
    return target


def hashes(folder: Path) -> list[str]:
    return [shard.sha256 for shard in check_shards(folder).manifest.shards]


@pytest.mark.parametrize("pack_one", [zipped, tarred, gzipped])
def test_archives_give_the_shards_of_the_unpacked_set(tmp_path: Path, pack_one: Pack) -> None:
    coco = make_coco(tmp_path / "coco", 70)
    assert pack(coco.root, tmp_path / "loose") == 0
    folder = download(coco.root, tmp_path / "download", pack_one)
    assert pack(folder, tmp_path / "packed", "--workers", "2") == 0
    assert hashes(tmp_path / "packed") == hashes(tmp_path / "loose")
    assert (tmp_path / "packed" / "dataset.json").read_bytes() == (
        tmp_path / "loose" / "dataset.json"
    ).read_bytes()


def test_an_archive_may_lie_where_its_content_belongs(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    assert pack(coco.root, tmp_path / "loose") == 0
    zipped(coco.pngs, coco.pngs)
    shutil.rmtree(coco.pngs)
    assert pack(coco.root, tmp_path / "half") == 0
    assert hashes(tmp_path / "half") == hashes(tmp_path / "loose")


def test_problems_name_archive_and_file(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 3)
    (coco.images / "000000000002.jpg").unlink()
    (coco.pngs / "000000000003.png").write_bytes(b"no png")
    folder = download(coco.root, tmp_path / "download", zipped)
    assert pack(folder, tmp_path / "out") == 1
    problems = (tmp_path / "out" / "problems.json").read_text()
    assert '"train2017.zip/train2017/000000000002.jpg"' in problems
    assert '"panoptic_train2017.zip/panoptic_train2017/000000000003.png"' in problems
    assert pack(folder, tmp_path / "out", "--skip-bad") == 0


def test_a_damaged_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    folder = download(coco.root, tmp_path / "download", zipped)
    content = (folder / "train2017.zip").read_bytes()
    (folder / "train2017.zip").write_bytes(content[: len(content) // 2])
    assert pack(folder, tmp_path / "out") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "train2017.zip is damaged" in error
    assert "cocodataset.org" in error


def flagged(archive: bytes, encrypted: int, method: int) -> bytes:
    """A zip whose members say that they are encrypted, or compressed by another method."""
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


ZIPS = {
    "password": lambda content: flagged(content, 1, 0),
    "compression": lambda content: flagged(content, 0, 9),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_archives_that_python_does_not_unpack_are_named(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    folder = download(coco.root, tmp_path / "download", zipped)
    archive = folder / "panoptic_annotations_trainval2017.zip"
    archive.write_bytes(ZIPS[kind](archive.read_bytes()))
    assert pack(folder, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert archive.name in error
    assert kind in error


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_of_an_archive_is_named(tmp_path: Path, method: int) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    archive = zipped(coco.images, tmp_path / "coco" / "train2017")
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(coco.images.iterdir()):
            file.write(path, f"train2017/{path.name}")
    archive.write_bytes(spoiled(archive.read_bytes(), b"train2017/000000000002.jpg"))
    shutil.rmtree(coco.images)
    assert pack(coco.root, tmp_path / "out") == 1
    (problem,) = json.loads((tmp_path / "out" / "problems.json").read_text())["problems"]
    assert problem["file"] == "train2017.zip/train2017/000000000002.jpg"
    assert "damaged" in problem["cause"]
    assert pack(coco.root, tmp_path / "out", "--skip-bad") == 0


def test_a_damaged_annotation_file_in_an_archive_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    folder = download(coco.root, tmp_path / "download", zipped)
    archive = folder / "panoptic_annotations_trainval2017.zip"
    name = b"annotations/panoptic_train2017.json"
    archive.write_bytes(spoiled(archive.read_bytes(), name))
    assert pack(folder, tmp_path / "out") == 1
    assert f"{archive.name}/{name.decode()}" in capsys.readouterr().err


def test_a_damaged_gzip_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = make_coco(tmp_path / "coco", 1)
    folder = download(coco.root, tmp_path / "download", gzipped)
    archive = folder / "train2017.tar.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[:30] + b"\xff" * 40 + content[70:])  # no valid block of deflate
    assert pack(folder, tmp_path / "out") == 1
    assert "train2017.tar.gz is damaged" in capsys.readouterr().err


def test_archives_of_other_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "images.tar.xz").touch()
    with pytest.raises(DataError, match=r"images\.tar\.xz.*unpack"):
        Tree(tmp_path, "").need_folder("images", "images.zip")


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco.zip", 1)
    assert pack(coco.root, tmp_path / "out") == 0


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "root" / "images").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").touch()
    (tmp_path / "root" / "images" / "scene").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "root" / "images")
    assert Folder(tmp_path / "root", "images/").names() == ["scene/1.jpg"]


def test_a_part_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"images is there more than once \(.*a/images.*b/images"):
        Tree(tmp_path, "").folder("images")
    assert Tree([tmp_path / "a"], "").folder("images") is not None


def macos(root: Path) -> None:
    """What macOS puts beside every file of a folder."""
    for path in [*root.rglob("*")]:
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
            path.with_name(".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def test_what_macos_puts_beside_files_is_no_data(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    assert pack(coco.root, tmp_path / "clean") == 0
    macos(coco.root)
    shutil.copytree(coco.root, coco.root / "__MACOSX")
    for path in (coco.root / "__MACOSX").rglob("*.*"):
        if not path.name.startswith("."):
            path.unlink()  # a zip holds the ._ files alone there
    assert pack(coco.root, tmp_path / "loose") == 0
    assert hashes(tmp_path / "loose") == hashes(tmp_path / "clean")


@pytest.mark.parametrize("pack_one", [zipped, tarred, gzipped])
def test_archives_of_macos(tmp_path: Path, pack_one: Pack) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    assert pack(coco.root, tmp_path / "clean") == 0
    macos(coco.root)
    folder = download(coco.root, tmp_path / "download", pack_one)
    for archive in folder.iterdir():
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive, "a") as file:
                for name in file.namelist():
                    file.writestr(f"__MACOSX/{name}", b"\0\5\x16\7")
    macos(folder)
    assert pack(folder, tmp_path / "packed") == 0
    assert hashes(tmp_path / "packed") == hashes(tmp_path / "clean")


def test_names_of_archives_may_have_dots_and_brackets(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2, split="v1.5 [x]")
    assert pack(coco.root, tmp_path / "loose", split="v1.5 [x]") == 0
    target = tmp_path / "download"
    target.mkdir()
    zipped(coco.images, target / "images")
    zipped(coco.pngs, coco.pngs)
    shutil.rmtree(coco.pngs)
    zipped(coco.root / "annotations", target / "annotations")
    assert pack(target, tmp_path / "packed", split="v1.5 [x]") == 0
    assert hashes(tmp_path / "packed") == hashes(tmp_path / "loose")


def test_unpacked_files_win_over_archives(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"one")
    zipped(tmp_path / "images", tmp_path / "images")
    folder = Tree(tmp_path, "").folder("images")
    assert folder is not None
    assert folder.file("1.jpg") == SourceFile(tmp_path, "images/1.jpg")
    assert folder.names() == ["1.jpg"]
