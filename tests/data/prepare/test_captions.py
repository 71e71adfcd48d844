"""Captions by a tiny BLIP: content, resuming, damage."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_blip
import torch
from PIL import Image
from shard_members import members
from test_stream import data, evaluated, train
from typer.testing import CliRunner

from odise_pl.cli import app
from odise_pl.data.manifest import FILE_NAME, Manifest, open_shard_set
from odise_pl.data.prepare import captions
from odise_pl.data.prepare.captions import CaptionModel, prepare_captions
from odise_pl.data.records import DataError
from odise_pl.errors import UserError
from odise_pl.models.blip import BlipSentences, load_blip


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip.save(tmp_path_factory.mktemp("models") / "tiny-blip")


def write_captions(shards: Path, out: Path, blip: Path, max_tokens: int = 5, **options: int) -> Manifest:
    model = CaptionModel(str(blip), max_tokens, ("cpu",))
    return prepare_captions(open_shard_set(shards), out, model, **options)


@pytest.fixture(scope="module")
def captioned(shards: Path, blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 23 samples with captions; tests must not change them."""
    out = tmp_path_factory.mktemp("captioned") / "out"
    write_captions(shards, out, blip)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_copy_has_captions_of_the_model(shards: Path, captioned: Path, blip: Path) -> None:
    model, said, expected = load_blip(str(blip), max_tokens=5), set(), {}
    assert len(list(shards.glob("*.tar"))) > 2
    for shard in shards.glob("*.tar"):
        before, after = members(shard), members(captioned / shard.name)
        assert list(before) == list(after)
        for name in [name for name in before if name.endswith(".json")]:
            record = json.loads(after[name])
            caption = record.pop("generated_caption")
            assert record == json.loads(before.pop(name))
            del after[name]
            image = Image.open(io.BytesIO(after[name.replace(".json", ".jpg")]))
            pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)
            assert model(pixels.permute(2, 0, 1)[None]) == [caption]
            said.add(caption)
            expected[record["image_id"]] = caption
        assert before == after  # images and maps
    assert len(said) > 1
    for batches in (train(data(captioned)), evaluated(data(captioned))):
        assert sum(map(len, batches)) >= 22
        for batch in batches:
            assert batch.generated_captions == tuple(expected[image_id] for image_id in batch.image_ids)


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
    assert str(captioned.parent) not in (captioned / FILE_NAME).read_text()
    assert {path.suffix for path in captioned.iterdir()} == {".tar", ".json"}


@pytest.mark.slow
def test_shards_do_not_depend_on_workers(shards: Path, captioned: Path, blip: Path, tmp_path: Path) -> None:
    write_captions(shards, tmp_path / "out", blip, workers=2)
    assert contents(tmp_path / "out") == contents(captioned)


def test_interrupted_run_keeps_complete_shards(
    shards: Path, blip: Path, captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, caption, images = tmp_path / "out", BlipSentences.caption, []

    def interrupt(model: BlipSentences, pixels: torch.Tensor) -> list[str]:
        images.append(len(pixels))
        if len(images) == 3:
            raise KeyboardInterrupt
        return caption(model, pixels)

    monkeypatch.setattr(BlipSentences, "caption", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_captions(shards, out, blip)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(times) == 2
    with pytest.raises(DataError, match="interrupted run with other options"):
        write_captions(shards, out, blip, max_tokens=3)
    write_captions(shards, out, blip)
    assert sum(images) == 23 + images[2]  # only the interrupted shard is read twice
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(out) == contents(captioned)


def test_finished_set_is_not_overwritten(shards: Path, captioned: Path, blip: Path, tmp_path: Path) -> None:
    out = shutil.copytree(captioned, tmp_path / "out")
    write_captions(shards, out, blip)
    assert contents(out) == contents(captioned)
    for target, tokens in ((out, 3), (shards, 5)):  # never in place
        with pytest.raises(DataError, match="already holds the shard set 'coco_train2017'"):
            write_captions(shards, target, blip, tokens)


def test_damaged_shard_is_named(shards: Path, blip: Path, tmp_path: Path) -> None:
    source = shutil.copytree(shards, tmp_path / "source")
    first = min(source.glob("*.tar"))
    content = bytearray(first.read_bytes())
    content[600:640] = bytes(40)  # in the first image
    first.write_bytes(content)
    with pytest.raises(DataError, match=f"{first}: has another checksum"):
        write_captions(source, tmp_path / "out", blip)
    manifest = json.loads((source / FILE_NAME).read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    (source / FILE_NAME).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=f"{first}/000000000001: member jpg"):
        write_captions(source, tmp_path / "damaged", blip)
    first.unlink()
    with pytest.raises(DataError, match=f"{first}.*No such file"):
        write_captions(source, tmp_path / "missing", blip)
    assert not list(tmp_path.glob("*/.prepare/*.tar"))


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
    with pytest.raises(DataError, match=f"--weights {captions.WEIGHTS} .*odise weights fetch blip"):
        CaptionModel.find(str(captions.WEIGHTS), 20, "auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert CaptionModel.find("x", 20, "auto").devices == ("cuda:0", "cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert CaptionModel.find("x", 20, "auto").devices == ("cpu",)
    with pytest.raises(UserError, match="--device cuda"):
        CaptionModel.find("x", 20, "cuda")
