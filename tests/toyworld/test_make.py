from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_pl.data.manifest import check_shards
from odise_pl.data.records import DataError
from odise_pl.toyworld.make import main, make, toy_sets, vocabulary
from odise_pl.toyworld.stuff import STUFF
from odise_pl.toyworld.things import THINGS

NOVEL = {kind.name for kind in (*THINGS, *STUFF) if kind.novel}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_the_same_seed_gives_the_same_shards(tmp_path: Path) -> None:
    arguments = ["--train", "12", "--val", "3", "--open", "4", "--out"]
    assert main([*arguments, str(tmp_path / "a"), "--workers", "1"]) == 0
    assert main([*arguments, str(tmp_path / "b"), "--workers", "2"]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert main([*arguments, str(tmp_path / "c"), "--workers", "1", "--seed", "1"]) == 0
    assert files(tmp_path / "a") != files(tmp_path / "c")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        ".toy.lock",
        "toy_open",
        "toy_train",
        "toy_val",
    ]


def test_novel_categories_are_in_the_open_set_alone(tmp_path: Path) -> None:
    base, open_ = (
        check_shards(make(toy_set, tmp_path)).manifest
        for toy_set in (toy_sets(train=30)[0], toy_sets(open_=60)[2])
    )
    assert NOVEL.isdisjoint(base.vocabulary.names)
    assert set(open_.vocabulary.names) == set(base.vocabulary.names) | NOVEL
    assert base.name == "toy_train"
    assert base.counts.captions == 3 * 30
    seen = open_.vocabulary.overlap(base.vocabulary)
    assert {n for n, known in zip(open_.vocabulary.names, seen, strict=True) if not known} == NOVEL


def test_pictures_in_the_shards_are_good(tmp_path: Path) -> None:
    out = make(toy_sets(open_=4)[2], tmp_path)
    with tarfile.open(out / "open-000000.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    image = np.asarray(Image.open(io.BytesIO(content["000003.jpg"])))
    ids = np.asarray(Image.open(io.BytesIO(content["000003.panoptic.png"])))
    assert image.shape == ids.shape
    assert 128 <= image.shape[0] <= 160


def test_what_is_there_is_kept_and_other_things_are_refused(tmp_path: Path) -> None:
    out = make(toy_sets(val=3)[1], tmp_path)
    before = (out / "dataset.json").stat().st_mtime_ns
    make(toy_sets(val=3)[1], tmp_path)
    assert (out / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"toy_val holds 3 pictures, .*seed 0; asked for are 5 pictures"):
        make(toy_sets(val=5)[1], tmp_path)
    with pytest.raises(DataError, match=r"seed 0; asked for are .* seed 1"):
        make(toy_sets(val=3)[1], tmp_path, seed=1)


@pytest.mark.parametrize("damage", ["shorter", "missing"])
def test_damaged_shards_are_named(damage: str, tmp_path: Path) -> None:
    shard = make(toy_sets(val=3)[1], tmp_path) / "val-000000.tar"
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"val-000000.tar: is missing or damaged .* delete .*toy_val"):
        make(toy_sets(val=3)[1], tmp_path)


def test_a_run_that_was_killed_while_it_wrote_shards_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(toy_sets(val=3)[1], tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("odise_pl.data.prepare.packing._manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(toy_sets(val=3)[1], tmp_path)
    assert (tmp_path / "toy_val" / "val-000000.tar").exists()
    again = make(toy_sets(val=3)[1], tmp_path)
    assert files(again) == files(whole)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_two_runs_at_once_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = []

    def second(*_: object) -> None:
        codes.append(main(["--out", str(tmp_path), "--workers", "1"]))

    monkeypatch.setattr("odise_pl.toyworld.make._paint", second)
    with pytest.raises(DataError):  # there is nothing to pack
        make(toy_sets(val=3)[1], tmp_path)
    assert codes == [1]
    assert "another run is writing to" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [("--train", "0"), ("--val", "-3"), ("--workers", "0"), ("--seed", "-1"), ("--open", "x")]
)
def test_options_out_of_range_are_named(
    wrong: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), *wrong])
    assert wrong[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--out", str(tmp_path / "file")]) == 1
    assert "file is a file; --out names a folder" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "file" / "sub")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_an_interrupted_run_starts_again(tmp_path: Path) -> None:
    (tmp_path / ".toy_val" / "val").mkdir(parents=True)
    (tmp_path / ".toy_val" / "val" / "000000.jpg").write_bytes(b"half")
    out = make(toy_sets(val=3)[1], tmp_path)
    assert check_shards(out).manifest.counts.samples == 3
    assert not (tmp_path / ".toy_val").exists()


def test_vocabulary_ids_agree() -> None:
    base, everything = vocabulary(novel=False), vocabulary(novel=True)
    assert all(category in everything.categories for category in base.categories)
    assert sum(everything.isthing) == len(THINGS)


def test_finished_sets_are_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    sizes = ["--train", "2", "--val", "1", "--open", "1"]
    assert main(["--out", str(tmp_path), *sizes]) == 0
    (tmp_path / ".toy.lock").unlink()
    (tmp_path / ".toy.lock").mkdir()  # cannot be opened for writing, by root neither
    assert main(["--out", str(tmp_path), *sizes]) == 0
