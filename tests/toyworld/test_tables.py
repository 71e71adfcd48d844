"""The paper's tables on the small world: what is run, and how finished runs are written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from odise_pl.configuration import training_problems
from odise_pl.data.manifest import check_shards
from odise_pl.data.reading import read_shard
from odise_pl.published import ABLATIONS
from odise_pl.runs import RunSettings, mark_finished, settings_of
from odise_pl.toyworld import tables
from odise_pl.toyworld.captioner import SentenceModel, sentences
from odise_pl.toyworld.make import main as make

CONF = Path(__file__).parents[2] / "conf"
CLIP = "odise_pl/toyworld/weights/clip.safetensors"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    assert make(["--out", str(folder), "--train", "6", "--val", "2", "--open", "2", "--workers", "1"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SentenceModel.__init__, "__defaults__", (20,))
        tables.write_captions(folder, CLIP, workers=1)
    return folder


def test_every_row_of_the_papers_ablations_is_a_run_that_can_start(shards: Path) -> None:
    found: dict[str, RunSettings] = {}
    for case in tables.cases(shards):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [*case.settings, f"paths.shards={shards}", "run=tables"])
        assert training_problems(config) == [], case.name
        found[case.name] = settings_of(config)
    for ablation in ABLATIONS[:2]:
        for row in ablation.rows:
            case = "caption" if row == "implicit" else f"{ablation.name}_{row}"
            assert found[case].model == "caption"
            assert getattr(found[case], ablation.field) == row
    assert [found[name].model for name in ("label", "caption", "label_random")] == [
        "label",
        "caption",
        "label",
    ]
    assert not found["timestep_0"].learnable_time
    assert found["timestep_learnable"].learnable_time


def test_captions_by_the_small_worlds_model_are_in_a_copy_of_the_shards(shards: Path) -> None:
    chosen = set(sentences(20))
    for name in ("toy_train", "toy_val", "toy_open"):
        copy = check_shards(shards / "captioned" / name)
        for url, shard in zip(copy.urls, copy.manifest.shards, strict=True):
            for sample in read_shard(url, list(range(shard.samples))):
                assert json.loads(sample.members["json"])["generated_caption"] in chosen


def finish(folder: Path, mode: str, value: float) -> None:
    settings = RunSettings("caption", "0", True, "implicit", mode)
    scores = {
        "toy_val": {"pq": value},
        "toy_open": {"pq": value / 2, "pq_base": value, "pq_novel": value / 4},
    }
    mark_finished(folder, settings, scores, f"{folder}")


def test_the_tables_hold_mean_and_spread_of_what_is_finished(tmp_path: Path) -> None:
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        folder = tmp_path / "caption" / f"seed_{seed}"
        finish(folder, "both", value)
        for shift, mode in enumerate(("discriminative", "diffusion", "both")):
            finish(folder / "evaluation" / mode, mode, value - 0.1 * shift)
    finish(tmp_path / "captioner_empty" / "seed_0", "both", 0.4)
    text = tables.document(tmp_path)
    assert (
        "| caption | 45.6 | 23.4 | 60.0 ± 10.0 | 30.0 ± 5.0 | 60.0 ± 10.0 | 15.0 ± 2.5 | - | - | 3 |" in text
    )
    assert "| label | 55.4 | 22.6 | - | - | - | - | - | - | 0 |" in text
    assert "| empty | 43.5 | 21.8 | 40.0 | 20.0 | 40.0 | 10.0 | - | - | 1 |" in text
    assert "| implicit | 44.2 | 23.3 | 60.0 ± 10.0 |" in text
    assert "| diffusion | 42.3 | 20.1 | 50.0 ± 10.0 |" in text
    assert "paper, ADE20K: both > diffusion > discriminative" in text
    assert "here, toy_open: discriminative > diffusion > both" in text
    assert text.count("here, toy_open:") == 1  # of what is complete


def test_a_run_that_fails_ends_the_tables_and_keeps_what_is_there(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "make", lambda arguments: 0)
    monkeypatch.setattr(tables, "write_captions", lambda shards, weights, workers: None)
    where = ["--run", str(tmp_path), "--shards", str(shards), "--out", str(tmp_path / "docs" / "tables.md")]
    assert tables.main([*where, "--seeds", "0", "--set", "trainer.max_steps=0"]) == 1
    captured = capsys.readouterr()
    assert "train.py experiment=toy" in captured.out
    assert "has failed; the same command goes on" in captured.err
    assert not (tmp_path / "docs").exists()
    assert tables.main([*where, "--write-only"]) == 0
    assert "# The paper in miniature" in (tmp_path / "docs" / "tables.md").read_text()
