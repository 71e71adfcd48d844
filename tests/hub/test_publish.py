"""Published networks: what is written, uploaded, and read again, with the Hub's HTTP on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import serve
from PIL import Image
from safetensors.torch import load_file
from small_runs import composed
from typer.testing import CliRunner

from odise_pl import Segmenter
from odise_pl.checkpoints.description import NetworkSettings
from odise_pl.checkpoints.metadata import check_resumable, describe
from odise_pl.checkpoints.weights import load_weights
from odise_pl.cli import app
from odise_pl.errors import SettingError, UserError
from odise_pl.evaluation.run import evaluate
from odise_pl.hub.card import CARD, model_card
from odise_pl.hub.networks import portable, resolve, save_pretrained
from odise_pl.models.weights import WeightsError, read_checkpoint
from odise_pl.runs.record import EVALUATIONS, read_command
from odise_pl.runs.resume import checkpoint_path

WORDS = ["dog", "grass:stuff"]


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def run(checkpoint: Path) -> Path:
    return checkpoint.parent.parent


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("hub") / "network"
    save_pretrained(run, folder, "me/small", "cc-by-4.0")
    return folder


def segment(checkpoint: str | Path) -> torch.Tensor:
    return Segmenter.from_pretrained(checkpoint)(picture(), WORDS).prediction.best[1]


def test_folder_holds_exactly_the_trained_network(run: Path, published: Path, checkpoint: Path) -> None:
    assert {path.name for path in published.iterdir()} == {"config.json", "model.safetensors", CARD}
    kept = read_checkpoint(checkpoint)
    weights = load_file(published / "model.safetensors")
    assert {f"model.{name}" for name in weights} == kept["state_dict"].keys()
    assert all(torch.equal(t, kept["state_dict"][f"model.{name}"]) for name, t in weights.items())
    path = resolve(published)
    assert describe(path) == describe(checkpoint)
    assert segment(published) == segment(run)


def test_evaluation_and_new_runs_take_it_and_resuming_does_not(
    published: Path, checkpoint: Path, scene_shards: Path, tmp_path: Path
) -> None:
    path = checkpoint_path(str(published), tmp_path)
    load_weights(Segmenter.from_pretrained(checkpoint).model, path)
    with pytest.raises(WeightsError, match="init_from="):
        check_resumable(path)
    options = [
        f"data.val={scene_shards}",
        "data.num_workers=0",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "data.limit_samples=2",
    ]
    scores = [
        evaluate(composed("evaluate", tmp_path / str(i), [f"ckpt={place}", *options]))
        for i, place in enumerate((published, checkpoint))
    ]
    assert scores[0] == scores[1]


def test_card_has_scores_of_this_network_only(run: Path, scene_shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    (copy / "checkpoints").mkdir(parents=True)
    (copy / "checkpoints" / "last.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    ckpt = [f"ckpt={copy}", "data.num_workers=0", "trainer=cpu", "trainer.enable_progress_bar=false"]
    ckpt += ["data.limit_samples=2"]
    for name, overrides in (("kept", []), ("other", ["classifier.mode=diffusion"])):
        options = [*ckpt, "data=shards", f"data.val={{{name}: {scene_shards}}}", *overrides]
        evaluate(composed("evaluate", copy, options), overrides)
    assert len(list((copy / EVALUATIONS).iterdir())) == 2
    stale = next((copy / EVALUATIONS).glob("kept*")) / "stale" / "results.json"
    result = json.loads((stale.parent.parent / "kept" / "results.json").read_text())
    stale.parent.mkdir()
    stale.write_text(json.dumps(result | {"data": "stale", "about": {"step": 1}}))
    save_pretrained(copy, tmp_path / "out", "me/small")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["scores"] == {"kept": result["scores"]}
    card = (tmp_path / "out" / CARD).read_text()
    assert "| kept |" in card
    assert "other" not in card.split("## Scores")[1].split("##")[0]
    assert "stale" not in card


def test_card_names_command_and_licences(checkpoint: Path, published: Path, tmp_path: Path) -> None:
    here = ["clip.weights=/there/me/open_clip_model.safetensors", "+backbone.unet=/there/me/own.safetensors"]
    network = portable(NetworkSettings.of_config(composed("train", tmp_path, here)))
    assert network.weights()["clip.weights"] == "${paths.weights}/open_clip_model.safetensors"
    assert network.weights()["backbone.unet"] == "${paths.weights}/own.safetensors"
    card = model_card("me/full", network, read_checkpoint(checkpoint), [], "odise train seed=1", "cc-by-4.0")
    named = ("seed=1", "sd-v1-3.ckpt", "OpenRAIL-M", "MIT (OpenAI)", "base_model:", "license: cc-by-4.0")
    assert all(word in card for word in named)
    assert "/home" not in card
    card = (published / CARD).read_text()
    assert 'from_pretrained("me/small")' in card
    assert "not recorded" in card


def test_command_is_recorded(tmp_path: Path) -> None:
    code = (
        "import hydra; from pathlib import Path; from odise_pl.runs.conf import CONF\n"
        "from odise_pl.runs.record import write_settings\n"
        "@hydra.main(version_base='1.3', config_path=str(CONF), config_name='train')\n"
        "def main(config): write_settings(Path(config.run_dir), {'seed': config.seed})\n"
        "main()"
    )
    words = ["experiment=laptop", "data.train=my shards", f"hydra.run.dir={tmp_path}"]
    subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=tmp_path)
    assert read_command(tmp_path) == "odise train experiment=laptop 'data.train=my shards'"
    assert read_command(tmp_path / "none") is None


def changed(published: Path, folder: Path, edit: Callable[[Any], None]) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(published / "model.safetensors")
    config = json.loads((published / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["network"]["model"].update(_target_="os.system"),
        lambda c: c["network"]["model"]["clip"].update(weights="someone/model"),
        lambda c: c["network"]["model"]["backbone"].update(weights="${oc.env:HOME}"),
        lambda c: c["network"].pop("sides"),
        lambda c: c.update(network=[1]),
        lambda c: c.update(vocabulary=3),
        lambda c: c.update(step="../x"),
        lambda c: c.update(format="other"),
        lambda c: c.update(version=99),
    ],
)
def test_description_is_not_trusted(published: Path, tmp_path: Path, edit: Callable[[Any], None]) -> None:
    folder = changed(published, tmp_path / "odd", edit)
    with pytest.raises(UserError, match="odd"):
        Segmenter.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "\0"])
def test_damaged_description_is_named(published: Path, tmp_path: Path, text: str) -> None:
    folder = changed(published, tmp_path / "odd", dict.clear)
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        Segmenter.from_pretrained(folder)


def test_paths_are_not_taken_for_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for name in ("runs/demo", "mine/demo", "someone/net.ckpt", "./one/net", "a/b/c", "demo"):
        with pytest.raises(SettingError, match=str(Path(name))):
            resolve(name)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        resolve("someone/network")


def hub_run(url: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    hub = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    hub |= {"HF_TOKEN": "hf_secret"}
    command = [sys.executable, *words]
    return subprocess.run(command, env=os.environ | hub, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_pushed_network_is_loaded_by_its_id(run: Path, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    code = (
        "from odise_pl import Segmenter\n"
        "segmenter = Segmenter.from_pretrained('me/small')\n"
        f"print(segmenter({str(tmp_path / 'photo.png')!r}, {WORDS}).prediction.best)"
    )
    with serve() as hub:
        done = hub_run(
            hub.url, tmp_path / "hf", "-m", "odise_pl", "hub", "push", str(run), "me/small", "--private"
        )
        assert done.returncode == 0, done.stderr
        assert f"{hub.url}/me/small" in done.stdout
        assert hub.private
        assert hub.files["me/small"].keys() == {"config.json", "model.safetensors", CARD}
        hub.files["me/small"]["evil.py"] = b"raise SystemExit"
        hub.files["me/other"] = {"config.json": b"{}"}
        done = hub_run(hub.url, tmp_path / "hf", "-c", f"{code}\nSegmenter.from_pretrained('me/other')")
        assert "DownloadError: me/other is not a network of this project" in done.stderr
        assert done.stdout.strip() == str(Segmenter.from_pretrained(run)(picture(), WORDS).prediction.best)
        assert not list((tmp_path / "hf").rglob("evil.py"))
    # without the server, from the cache
    done = hub_run(hub.url, tmp_path / "hf", "-c", code)
    assert done.returncode == 0, done.stderr


def test_push_that_is_refused_is_one_message(published: Path, run: Path, tmp_path: Path) -> None:
    with serve() as hub:
        hub.status = 403
        done = hub_run(hub.url, tmp_path, "-m", "odise_pl", "hub", "push", str(published), "me/small")
        assert done.returncode == 1
        assert done.stderr.startswith("error: me/small")
        assert "auth login" in done.stderr
    refused = CliRunner().invoke(app, ["hub", "push", str(run), "small", "--folder", str(tmp_path / "out")])
    assert "small: give the id as OWNER/NAME" in str(refused.exception)
    empty = CliRunner().invoke(app, ["hub", "push", str(tmp_path), "me/small"])
    assert "has no checkpoints" in str(empty.exception)
