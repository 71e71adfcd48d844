"""The painted data sets."""

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


def make_all(folder: Path, seed: int = 0) -> Path:
    for toy_set in toy_sets(train=6, val=3, open_=4):
        make(toy_set, folder, seed)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three sets; not to be changed."""
    return make_all(tmp_path_factory.mktemp("shards"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_command_paints_the_same_shards_with_several_workers(shards: Path, tmp_path: Path) -> None:
    counts = ["--train", "6", "--val", "3", "--open", "4"]
    done = CliRunner().invoke(app, ["toyworld", "make", "--out", str(tmp_path / "a"), *counts])
    assert done.exit_code == 0
    assert files(tmp_path / "a") == files(shards)
    assert {path.name for path in shards.iterdir()} == {"toy_open", "toy_train", "toy_val"}
    assert files(make_all(tmp_path / "b", seed=1)) != files(shards)


def test_only_open_set_has_novel_categories(shards: Path) -> None:
    base, open_ = (open_shard_set(shards / name).manifest for name in ("toy_train", "toy_open"))
    assert base.name == "toy_train"
    assert base.counts.captions == 3 * 6
    assert NOVEL.isdisjoint(base.vocabulary.names)
    seen = open_.vocabulary.overlap(base.vocabulary)
    assert {n for n, known in zip(open_.vocabulary.names, seen, strict=True) if not known} == NOVEL


def test_vocabularies_share_their_ids() -> None:
    base, everything = vocabulary(novel=False), vocabulary(novel=True)
    assert all(category in everything.categories for category in base.categories)
    assert sum(everything.isthing) == len(THINGS)


def test_pictures_and_maps_have_the_same_size(shards: Path) -> None:
    with tarfile.open(shards / "toy_open" / "open-000000.tar") as tar:
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
    (out / "dataset.json").unlink()
    with pytest.raises(DataError, match="toy_val"):
        make(toy_sets(val=3)[1], tmp_path)


def test_interrupted_painting_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("odise_pl.data.prepare.packing.Manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(toy_sets(val=3)[1], tmp_path)
    assert not list(tmp_path.iterdir())
