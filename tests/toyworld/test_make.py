from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from odise_pl.cli import app
from odise_pl.data.manifest import open_shard_set
from odise_pl.data.records import DataError
from odise_pl.toyworld.make import KINDS, make, toy_sets, vocabulary
from odise_pl.toyworld.things import THINGS

NOVEL = {kind.name for kind in KINDS if kind.novel}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_shards_are_reproducible(tmp_path: Path) -> None:
    for name, workers, seed in (("a", "1", "0"), ("b", "2", "0"), ("c", "1", "1")):
        options = ["--out", str(tmp_path / name), "--workers", workers, "--seed", seed]
        counts = ["--train", "12", "--val", "3", "--open", "4"]
        result = CliRunner().invoke(app, ["toyworld", "make", *options, *counts])
        assert result.exit_code == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["toy_open", "toy_train", "toy_val"]


def test_only_open_set_has_novel_categories(tmp_path: Path) -> None:
    base, open_ = (
        open_shard_set(make(toy_set, tmp_path)).manifest
        for toy_set in (toy_sets(train=6)[0], toy_sets(open_=6)[2])
    )
    assert base.name == "toy_train"
    assert base.counts.captions == 3 * 6
    assert NOVEL.isdisjoint(base.vocabulary.names)
    seen = open_.vocabulary.overlap(base.vocabulary)
    assert {n for n, known in zip(open_.vocabulary.names, seen, strict=True) if not known} == NOVEL


def test_vocabularies_share_their_ids() -> None:
    base, everything = vocabulary(novel=False), vocabulary(novel=True)
    assert all(category in everything.categories for category in base.categories)
    assert sum(everything.isthing) == len(THINGS)


def test_pictures_and_maps_have_the_same_size(tmp_path: Path) -> None:
    out = make(toy_sets(open_=4)[2], tmp_path)
    with tarfile.open(out / "open-000000.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    image = np.asarray(Image.open(io.BytesIO(content["000003.jpg"])))
    ids = np.asarray(Image.open(io.BytesIO(content["000003.panoptic.png"])))
    assert image.shape == ids.shape
    assert 128 <= image.shape[0] <= 160


def test_existing_set_is_reused_and_others_refused(tmp_path: Path) -> None:
    out = make(toy_sets(val=3)[1], tmp_path)
    before = (out / "dataset.json").stat().st_mtime_ns
    make(toy_sets(val=3)[1], tmp_path)
    assert (out / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"toy_val contains 3 pictures, .* instead of 5"):
        make(toy_sets(val=5)[1], tmp_path)
    with pytest.raises(DataError, match=r"toy_val .*seed 0, instead of .* seed 1"):
        make(toy_sets(val=3)[1], tmp_path, seed=1)
    shard = out / "val-000000.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"val-000000.tar .*delete .*toy_val"):
        make(toy_sets(val=3)[1], tmp_path)


def test_interrupted_run_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("odise_pl.data.prepare.packing.Manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(toy_sets(val=3)[1], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["shards", "shards/toy_val"])
def test_file_in_place_of_a_folder_is_named(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises((DataError, OSError), match=place):
        make(toy_sets(val=1)[1], tmp_path / "shards")


@pytest.mark.parametrize("wrong", [("--train", "0"), ("--seed", "-1"), ("--open", "x")])
def test_invalid_options_are_named(wrong: tuple[str, str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["toyworld", "make", "--out", str(tmp_path), *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.output
    assert not list(tmp_path.iterdir())
