"""Captions by a tiny BLIP: content, resuming, damage."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny_blip
import torch
from mini_coco import make_coco, pack
from PIL import Image
from shard_members import members
from typer.testing import CliRunner

from odise_pl.cli import app
from odise_pl.data.manifest import Manifest, open_shard_set
from odise_pl.data.prepare import captions
from odise_pl.data.prepare.captions import CaptionModel, prepare_captions
from odise_pl.data.prepare.packing import PROBLEMS
from odise_pl.data.records import DataError
from odise_pl.data.sample_order import EvalPlan, TrainPlan
from odise_pl.data.stream import EvalStream, TrainStream
from odise_pl.data.transforms import EvalResize
from odise_pl.errors import UserError
from odise_pl.models.blip import BlipSentences, load_blip


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip.save(tmp_path_factory.mktemp("models") / "tiny-blip")


def write_captions(shards: Path, out: Path, blip: Path, max_tokens: int = 5, **options: int) -> Manifest:
    return prepare_captions(
        open_shard_set(shards), out, CaptionModel(str(blip), max_tokens, ("cpu",)), **options
    )


@pytest.fixture(scope="module")
def captioned(shards: Path, blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 23 samples with captions; tests must not change them."""
    out = tmp_path_factory.mktemp("captioned") / "out"
    write_captions(shards, out, blip)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def all_members(folder: Path) -> dict[str, dict[str, bytes]]:
    """Members of every shard, by the shard's name."""
    return {path.name: members(path) for path in sorted(folder.glob("*.tar"))}


def test_only_captions_are_added(shards: Path, captioned: Path) -> None:
    before, after = all_members(shards), all_members(captioned)
    assert len(before) > 2
    for shard, some in before.items():
        assert list(some) == list(after[shard])
        for name, content in some.items():
            if name.endswith(".json"):
                record = json.loads(after[shard][name])
                assert record.pop("generated_caption")
                assert record == json.loads(content)
            else:
                assert after[shard][name] == content


def test_captions_equal_model_output(captioned: Path, blip: Path) -> None:
    model = load_blip(str(blip), max_tokens=5)
    said = set()
    for some in all_members(captioned).values():
        for name in [name for name in some if name.endswith(".jpg")]:
            pixels = np.asarray(Image.open(io.BytesIO(some[name])).convert("RGB"), dtype=np.float32) / 255
            caption = json.loads(some[name.replace(".jpg", ".json")])["generated_caption"]
            assert model(torch.from_numpy(pixels).permute(2, 0, 1)[None]) == [caption]
            said.add(caption)
    assert len(said) > 1


def test_png_images_are_captioned(tmp_path: Path, blip: Path) -> None:
    coco = make_coco(tmp_path / "coco", 2)
    pixels = {}
    for image in coco.annotation["images"]:
        path = coco.images / image["file_name"]
        image["file_name"] = f"{path.stem}.png"
        Image.open(path).save(path.with_suffix(".png"))
        pixels[path.stem] = np.asarray(Image.open(path)).transpose(2, 0, 1) / np.float32(255)
        path.unlink()
    coco.save()
    pack(coco.root, tmp_path / "shards")
    write_captions(tmp_path / "shards", tmp_path / "out", blip)
    shards = open_shard_set(tmp_path / "out")
    (train,) = TrainStream(shards.urls, TrainPlan(shards.sizes, 2), lambda image, ids, _: (image, ids))
    assert all(train.generated_captions)
    for key, image in zip(train.keys, train.images, strict=True):
        height, width = pixels[key].shape[1:]
        np.testing.assert_array_equal(image[:, :height, :width], pixels[key])
    evaluation = EvalStream(shards.urls, EvalPlan(shards.sizes), EvalResize(64, 64))
    assert {key for batch in evaluation for key in batch.keys} == pixels.keys()
    (some,) = all_members(tmp_path / "out").values()
    for key in pixels:
        assert some[f"{key}.png"] == (coco.images / f"{key}.png").read_bytes()


def test_manifest_names_the_model(shards: Path, captioned: Path, blip: Path) -> None:
    before, after = open_shard_set(shards).manifest, open_shard_set(captioned).manifest
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


def test_batches_have_captions(shards: Path, captioned: Path) -> None:
    shard_set = open_shard_set(captioned)
    expected = {
        record["image_id"]: record["generated_caption"]
        for some in all_members(captioned).values()
        for record in (json.loads(some[name]) for name in some if name.endswith(".json"))
    }
    resize, eval_plan = EvalResize(64, 64), EvalPlan(shard_set.sizes, batch_size=2)
    train = TrainStream(shard_set.urls, TrainPlan(shard_set.sizes, batch_size=2), resize)
    for stream in (train, EvalStream(shard_set.urls, eval_plan, resize)):
        seen = {i: said for b in stream for i, said in zip(b.image_ids, b.generated_captions, strict=True)}
        assert len(seen) >= 22
        assert seen == {i: expected[i] for i in seen}
    without = next(iter(EvalStream(open_shard_set(shards).urls, eval_plan, resize)))
    assert without.generated_captions == (None, None)


@pytest.mark.slow
def test_shards_do_not_depend_on_workers(shards: Path, captioned: Path, blip: Path, tmp_path: Path) -> None:
    write_captions(shards, tmp_path / "out", blip, workers=2)
    assert contents(tmp_path / "out") == contents(captioned)


class Counter:
    """Counts the images that the model reads, and interrupts one of its batches."""

    def __init__(self, patch: pytest.MonkeyPatch, stop_at: int | None = None) -> None:
        self.images, self.calls, self.stop_at = 0, 0, stop_at
        self.caption = BlipSentences.caption
        patch.setattr(BlipSentences, "caption", lambda model, pixels: self.count(model, pixels))

    def count(self, model: BlipSentences, pixels: torch.Tensor) -> list[str]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.images += len(pixels)
        return self.caption(model, pixels)


def test_interrupted_run_keeps_complete_shards(
    shards: Path, blip: Path, captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        Counter(patch, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            write_captions(shards, out, blip)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(times) == 2
    with pytest.raises(DataError, match="interrupted run with other options"):
        write_captions(shards, out, blip, max_tokens=3)
    with monkeypatch.context() as patch:
        counter = Counter(patch)
        write_captions(shards, out, blip)
    assert 0 < counter.images < 23
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(out) == contents(captioned)


def test_finished_set_is_not_overwritten(shards: Path, captioned: Path, blip: Path, tmp_path: Path) -> None:
    out = shutil.copytree(captioned, tmp_path / "out")
    write_captions(shards, out, blip)
    assert contents(out) == contents(captioned)
    for target, tokens in ((out, 3), (shards, 5)):  # never in place
        with pytest.raises(DataError, match="already holds the shard set 'coco_train2017'"):
            write_captions(shards, target, blip, tokens)
    next(out.glob("*.tar")).write_bytes(b"")
    with pytest.raises(DataError, match="missing or damaged"):
        write_captions(shards, out, blip)


def test_damaged_sample_stops_before_the_model_runs_or_is_skipped(
    shards: Path, blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        counter = Counter(patch)
        with pytest.raises(DataError, match="No shard was written"):
            write_captions(source, tmp_path / "out", blip)
    assert counter.images == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PROBLEMS]
    listed = json.loads((tmp_path / "out" / PROBLEMS).read_text())
    causes = [f"{problem['sample']}: {problem['cause']}" for problem in listed["problems"]]
    assert any(c.startswith(f"{first.name}: has another checksum") for c in causes)
    assert any(c.startswith(f"{first.name}/{info.name[:-4]}: ") and "member jpg" in c for c in causes)
    lost = next(s.samples for s in open_shard_set(source).manifest.shards if s.name == second.name)
    assert sum(c.startswith(f"{second.name}[") and "No such file" in c for c in causes) == lost
    assert str(tmp_path) not in json.dumps(listed)
    manifest = write_captions(source, tmp_path / "out", blip, skip_bad=True)
    assert manifest.counts.samples == 23 - 1 - lost == sum(shard.samples for shard in manifest.shards)
    assert (manifest.counts.left_out, manifest.counts.problems) == (2 + lost, 2 + lost)
    assert second.name not in {shard.name for shard in manifest.shards}


def test_captions_command(shards: Path, blip: Path, captioned: Path, tmp_path: Path) -> None:
    options = ["captions", "--shards", str(shards), "--out", str(tmp_path / "out"), "--workers", "1"]
    options += ["--device", "cpu", "--max-tokens", "5"]
    result = CliRunner().invoke(app, [*options, "--weights", str(blip)], catch_exceptions=False)
    assert "captions by tiny-blip" in result.stdout
    assert contents(tmp_path / "out") == contents(captioned)
    result = CliRunner().invoke(app, [*options, "--weights", "nobody/nothing"])
    assert isinstance(result.exception, UserError)
    assert "--weights nobody/nothing" in str(result.exception)


def test_missing_model_and_device_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"--weights {captions.WEIGHTS} .*hf download Salesforce/"):
        CaptionModel.find(str(captions.WEIGHTS), 20, "auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert CaptionModel.find("x", 20, "auto").devices == ("cuda:0", "cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert CaptionModel.find("x", 20, "auto").devices == ("cpu",)
    with pytest.raises(UserError, match="--device cuda"):
        CaptionModel.find("x", 20, "cuda")
