"""Captions of a generated model in shards: what is written, and what becomes of interruptions and damage."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_blip
import torch
from conftest import pack
from mini_coco import make_coco
from PIL import Image

from odise_pl.data.manifest import check_shards
from odise_pl.data.prepare import captioning
from odise_pl.data.prepare.command import main
from odise_pl.data.prepare.packing import PROBLEMS
from odise_pl.data.prepare.shards import WORK
from odise_pl.data.sample_order import EvalPlan, TrainPlan
from odise_pl.data.stream import EvalStream, TrainStream
from odise_pl.data.transforms import EvalResize
from odise_pl.models.blip import BlipSentences, load_blip


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip.save(tmp_path_factory.mktemp("models") / "tiny-blip")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioning, "CHUNK", 4)
    monkeypatch.setattr(captioning, "BATCH", 3)


def write_captions(shards: Path, out: Path, blip: Path, *options: str, workers: str = "1") -> int:
    given = ["--shards", str(shards), "--out", str(out), "--weights", str(blip), "--max-tokens", "5"]
    return main(["captions", *given, "--device", "cpu", "--workers", workers, *options])


@pytest.fixture(scope="module")
def captioned(shards: Path, blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 23 samples with captions; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "CHUNK", 4)
        patch.setattr(captioning, "BATCH", 3)
        out = tmp_path_factory.mktemp("captioned") / "out"
        assert write_captions(shards, out, blip) == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """Members of every shard, by the shard's name."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.name] = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    return found


def test_every_record_gets_a_caption_and_all_else_stays(shards: Path, captioned: Path) -> None:
    before, after = members(shards), members(captioned)
    assert len(before) > 2
    assert {name: list(some) for name, some in before.items()} == {n: list(some) for n, some in after.items()}
    for shard, some in before.items():
        for name, content in some.items():
            if name.endswith(".json"):
                record = json.loads(after[shard][name])
                assert record.pop("generated_caption")
                assert record == json.loads(content)
            else:
                assert after[shard][name] == content


def test_captions_are_what_the_model_says_of_the_whole_image(captioned: Path, blip: Path) -> None:
    model = load_blip(str(blip), max_tokens=5)
    said = set()
    for some in members(captioned).values():
        for name in [name for name in some if name.endswith(".jpg")]:
            pixels = np.asarray(Image.open(io.BytesIO(some[name])).convert("RGB"), dtype=np.float32) / 255
            caption = json.loads(some[name.replace(".jpg", ".json")])["generated_caption"]
            assert model(torch.from_numpy(pixels).permute(2, 0, 1)[None]) == [caption]
            said.add(caption)
    assert len(said) > 1


def test_images_that_are_pngs_are_captioned_and_streamed(tmp_path: Path, blip: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    pixels = {}
    for image in coco.annotation["images"]:
        path = coco.images / image["file_name"]
        image["file_name"] = f"{path.stem}.png"
        Image.open(path).save(path.with_suffix(".png"))
        pixels[path.stem] = np.asarray(Image.open(path)).transpose(2, 0, 1) / np.float32(255)
        path.unlink()
    coco.save()
    assert pack(coco.root, tmp_path / "shards") == 0
    assert write_captions(tmp_path / "shards", tmp_path / "out", blip) == 0
    shards = check_shards(tmp_path / "out")
    (train,) = TrainStream(shards.urls, TrainPlan(shards.sizes, 2), lambda image, ids, _: (image, ids))
    assert all(train.generated_captions)
    for key, image in zip(train.keys, train.images, strict=True):
        height, width = pixels[key].shape[1:]
        np.testing.assert_array_equal(image[:, :height, :width], pixels[key])
    evaluation = EvalStream(shards.urls, EvalPlan(shards.sizes), EvalResize(64, 64))
    assert {key for batch in evaluation for key in batch.keys} == pixels.keys()
    (some,) = members(tmp_path / "out").values()
    for key in pixels:
        assert some[f"{key}.png"] == (coco.images / f"{key}.png").read_bytes()


def test_the_description_says_who_captioned(shards: Path, captioned: Path, blip: Path) -> None:
    before, after = check_shards(shards).manifest, check_shards(captioned).manifest
    assert before.captioning is None
    assert after.captioning is not None
    assert (after.captioning.model, after.captioning.max_tokens) == ("tiny-blip", 5)
    assert after.captioning.sha256 == load_blip(str(blip)).digest()
    assert (after.counts, after.source, after.vocabulary) == (before.counts, before.source, before.vocabulary)
    for shard in after.shards:
        content = (captioned / shard.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
    assert str(captioned.parent) not in (captioned / "dataset.json").read_text()
    assert {path.suffix for path in captioned.iterdir()} == {".tar", ".json"}


def test_streams_carry_captions_to_batches(captioned: Path) -> None:
    shard_set = check_shards(captioned)
    expected = {
        record["image_id"]: record["generated_caption"]
        for some in members(captioned).values()
        for record in (json.loads(some[name]) for name in some if name.endswith(".json"))
    }
    resize = EvalResize(64, 64)
    train = TrainStream(shard_set.urls, TrainPlan(shard_set.sizes, batch_size=2), resize)
    evaluation = EvalStream(shard_set.urls, EvalPlan(shard_set.sizes, batch_size=2), resize)
    for stream in (train, evaluation):
        seen = {i: said for b in stream for i, said in zip(b.image_ids, b.generated_captions, strict=True)}
        assert len(seen) >= 22
        assert seen == {i: expected[i] for i in seen}


def test_without_captions_batches_have_none(shards: Path) -> None:
    shard_set = check_shards(shards)
    batch = next(
        iter(EvalStream(shard_set.urls, EvalPlan(shard_set.sizes, batch_size=2), EvalResize(64, 64)))
    )
    assert batch.generated_captions == (None, None)


def test_two_processes_write_the_same_bytes_as_one(shards: Path, blip: Path, tmp_path: Path) -> None:
    # processes of their own know nothing of the small chunks here
    for workers in ("1", "2"):
        with pytest.MonkeyPatch.context() as patch:
            patch.undo()
            patch.setattr(captioning, "CHUNK", 64)
            patch.setattr(captioning, "BATCH", 16)
            assert write_captions(shards, tmp_path / workers, blip, workers=workers) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


class Interrupted:
    """Counts what the model reads, and stops at one of its batches."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.images, self.calls, self.stop_at = 0, 0, stop_at
        self.caption: Callable = BlipSentences.caption

    def __call__(self, model: BlipSentences, pixels: torch.Tensor) -> list[str]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.images += len(pixels)
        return self.caption(model, pixels)


def count(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> Interrupted:
    counting = Interrupted(stop_at)
    monkeypatch.setattr(BlipSentences, "caption", lambda model, pixels: counting(model, pixels))
    return counting


def test_an_interrupted_run_is_continued_to_the_same_bytes(
    shards: Path, blip: Path, captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        count(patch, stop_at=6)
        assert write_captions(shards, tmp_path / "out", blip) == 130
    assert not list((tmp_path / "out").glob("*.tar"))
    kept = len(list((tmp_path / "out" / WORK).glob("captions-*.json")))
    assert kept > 0
    with monkeypatch.context() as patch:
        counting = count(patch)
        assert write_captions(shards, tmp_path / "out", blip) == 0
    assert 0 < counting.images < 23
    assert contents(tmp_path / "out") == contents(captioned)


def test_a_run_that_was_interrupted_in_writing_is_continued(
    shards: Path, blip: Path, captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = captioning.write_packed

    def stopping(name: str, *rest: object) -> object:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        return write(name, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(captioning, "write_packed", stopping)
        assert write_captions(shards, tmp_path / "out", blip) == 130
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in written}
    with monkeypatch.context() as patch:
        counting = count(patch)
        assert write_captions(shards, tmp_path / "out", blip) == 0
    assert counting.images == 0
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in written} == times
    assert contents(tmp_path / "out") == contents(captioned)


def test_notes_of_other_captions_are_not_taken(
    shards: Path,
    blip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        count(patch, stop_at=4)
        assert write_captions(shards, tmp_path / "out", blip) == 130
    assert write_captions(shards, tmp_path / "out", blip, "--max-tokens", "3") == 1
    assert "interrupted run with another model, other options or other shards" in capsys.readouterr().err


def test_a_finished_set_is_kept_and_not_overwritten(
    shards: Path, captioned: Path, blip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(captioned, tmp_path / "out")
    assert write_captions(shards, out, blip) == 0
    assert contents(out) == contents(captioned)
    assert write_captions(shards, out, blip, "--max-tokens", "3") == 1
    assert "already holds the shard set 'coco_train2017', which is not this one" in capsys.readouterr().err
    assert write_captions(shards, shards, blip) == 1  # never in place
    assert "already holds the shard set" in capsys.readouterr().err
    next(out.glob("*.tar")).write_bytes(b"")
    assert write_captions(shards, out, blip) == 1
    assert "missing or damaged" in capsys.readouterr().err


def test_damage_stops_it_before_the_model_runs_and_can_be_skipped(
    shards: Path,
    blip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = shutil.copytree(shards, tmp_path / "source")
    first, second, *_ = sorted(source.glob("*.tar"))
    with tarfile.open(first) as tar:
        info = tar.getmembers()[0]
    content = bytearray(first.read_bytes())
    content[info.offset_data : info.offset_data + 40] = bytes(40)  # the first image
    first.write_bytes(content)
    second.unlink()
    with monkeypatch.context() as patch:
        counting = count(patch)
        assert write_captions(source, tmp_path / "out", blip) == 1
    assert counting.images == 0
    assert "Nothing was written" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PROBLEMS]
    listed = json.loads((tmp_path / "out" / PROBLEMS).read_text())
    causes = [f"{problem['sample']}: {problem['cause']}" for problem in listed["problems"]]
    assert any(c.startswith(f"{first.name}: has another checksum") for c in causes)
    assert any(c.startswith(f"{first.name}/{info.name[:-4]}: ") and "member jpg" in c for c in causes)
    lost = next(s.samples for s in check_shards(source).manifest.shards if s.name == second.name)
    assert sum(c.startswith(f"{second.name}[") and "No such file" in c for c in causes) == lost
    assert str(tmp_path) not in json.dumps(listed)
    assert write_captions(source, tmp_path / "out", blip, "--skip-bad") == 0
    manifest = check_shards(tmp_path / "out").manifest
    assert manifest.counts.samples == 23 - 1 - lost
    assert sum(shard.samples for shard in manifest.shards) == manifest.counts.samples
    assert (manifest.counts.left_out, manifest.counts.problems) == (2 + lost, 2 + lost)
    assert second.name not in {shard.name for shard in manifest.shards}
    said = capsys.readouterr().out
    assert "captions by tiny-blip" in said
    assert f"{2 + lost} entries were left out" in said


def test_damage_that_comes_later_costs_no_captions(
    shards: Path, blip: Path, captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(shards, tmp_path / "source")
    with monkeypatch.context() as patch:
        count(patch, stop_at=5)
        assert write_captions(source, tmp_path / "out", blip) == 130
    last = max(source.glob("*.tar"))
    last.rename(tmp_path / "away")
    assert write_captions(source, tmp_path / "out", blip) == 1
    (tmp_path / "away").rename(last)
    with monkeypatch.context() as patch:
        counting = count(patch)
        assert write_captions(source, tmp_path / "out", blip) == 0
    assert 0 < counting.images < 23
    assert contents(tmp_path / "out") == contents(captioned)


@pytest.mark.parametrize(("options", "message"), [
    (["--max-tokens", "0"], "--max-tokens 0 must be 1 or more"),
    (["--weights", "nobody/nothing"], "cannot load BLIP from --weights nobody/nothing"),
    (["--shards", "nowhere"], "no shard set at nowhere/dataset.json"),
])  # fmt: skip
def test_bad_options_are_one_line(
    shards: Path,
    blip: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert write_captions(shards, tmp_path / "out", blip, *options) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line
    assert not (tmp_path / "out").exists()


def test_without_a_model_it_says_where_to_get_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["captions", "--shards", str(shards), "--out", "out"]) == 1
    error = capsys.readouterr().err
    assert "weights/blip-image-captioning-base is not there; get it with: hf download Salesforce/" in error
