"""The paper's tables on the small world: what is run, and how finished runs are written down."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from odise_pl.data.manifest import check_shards
from odise_pl.data.reading import read_shard
from odise_pl.runs.published import ABLATIONS
from odise_pl.runs.record import RunSettings, mark_finished, settings_of
from odise_pl.runs.settings import training_problems
from odise_pl.toyworld import tables, trainings
from odise_pl.toyworld.captioner import SentenceModel, sentences
from odise_pl.toyworld.commands import CommandError, Programs
from odise_pl.toyworld.make import main as make
from odise_pl.toyworld.results import Result, Results, digest, weights_digest
from odise_pl.toyworld.shipped import WEIGHTS

CONF = Path(__file__).parents[2] / "conf"
CLIP = str(WEIGHTS / "clip.safetensors")


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
    for case in trainings.cases(shards):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [*case.settings, f"paths.shards={shards}", "run=tables"])
        assert training_problems(config) == [], case.name
        found[case.name] = settings_of(config)
    for ablation in ABLATIONS[:2]:
        for row in ablation.rows:
            case = trainings.case_of(ablation, row)
            assert found[case].model == "caption"
            assert getattr(found[case], ablation.field) == ("0" if row == "learnable" else row)
    assert [found[name].model for name in ("label", "caption", "label_random")] == [
        "label",
        "caption",
        "label",
    ]
    assert not found["timestep_0"].learnable_time
    assert found["caption"].learnable_time


def test_captions_by_the_small_worlds_model_are_in_a_copy_of_the_shards(shards: Path) -> None:
    chosen = set(sentences(20))
    for name in ("toy_train", "toy_val", "toy_open"):
        copy = check_shards(shards / "captioned" / name)
        for url, shard in zip(copy.urls, copy.manifest.shards, strict=True):
            for sample in read_shard(url, list(range(shard.samples))):
                assert json.loads(sample.members["json"])["generated_caption"] in chosen


def scored(value: float) -> Result:
    return Result(
        "made so",
        {
            "toy_val": {"pq": value},
            "toy_open": {"pq": value / 2, "pq_base": value, "pq_novel": value / 4},
        },
    )


def test_the_tables_hold_mean_and_spread_of_what_is_finished(tmp_path: Path) -> None:
    results = Results(tmp_path / "docs" / "results.json")
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        results.add("caption", seed, scored(value))
        for shift, mode in enumerate(("discriminative", "diffusion", "both")):
            results.add(f"classifier_{mode}", seed, scored(value - 0.1 * shift))
    results.add("captioner_empty", 0, scored(0.4))
    wanted = dict.fromkeys(trainings.digests([]), "made so")
    results.add("label", 0, replace(scored(0.9), digest="made otherwise"))
    text = tables.document(Results(results.path).matching(wanted))
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


def test_the_tables_in_docs_are_those_of_the_scores_beside_them() -> None:
    results = CONF.parent / "docs" / "toy_results.json"
    kept = json.loads(results.read_text())
    wanted = {
        case: next(iter(kept.get(case, {"0": {"digest": ""}}).values()))["digest"]
        for case in trainings.digests([])
    }
    assert tables.document(Results(results).matching(wanted)) == results.with_suffix(".md").read_text()


def test_a_digest_is_that_of_all_that_decides_a_training(tmp_path: Path) -> None:
    (tmp_path / "unet.safetensors").write_bytes(b"1")
    weights = weights_digest(tmp_path)
    first = digest(["experiment=toy"], weights, CONF)
    assert digest(["experiment=toy"], weights, CONF) == first
    assert digest(["experiment=toy", "optimizer.lr=2e-3"], weights, CONF) != first
    (tmp_path / "unet.safetensors").write_bytes(b"2")
    assert digest(["experiment=toy"], weights_digest(tmp_path), CONF) != first


def test_the_classifiers_are_evaluated_with_the_weights_of_the_training(tmp_path: Path, shards: Path) -> None:
    seen: list[str] = []

    def call(program: str, *settings: str, threads: int | None) -> None:
        if program == "evaluate.py":
            seen.extend(settings)
            raise CommandError("enough")
        kind = RunSettings("caption", "0", True, "implicit", "both")
        mark_finished(folder_of(settings), kind, scored(0.5).scores, "whole")

    others = ["paths.toyworld=weights/toy", "trainer.max_steps=5"]
    where, results = trainings.Places(tmp_path / "runs", shards), Results(tmp_path / "results.json")
    running = trainings.run_all(pretended(call), results, trainings.digests(others), where, [0], others)
    with pytest.raises(CommandError):
        list(running)
    assert "paths.toyworld=weights/toy" in seen
    assert "trainer.max_steps=5" not in seen


def folder_of(settings: Sequence[str]) -> Path:
    """Where a training or an evaluation is told to run."""
    return Path(next(s for s in settings if s.startswith("hydra.run.dir=")).partition("=")[2])


def pretended(call: Callable[..., None]) -> Programs:
    """Programs of which this is run instead."""
    programs = Programs()
    programs.call = call  # type: ignore[method-assign]
    return programs


def test_only_what_is_missing_is_run(tmp_path: Path, shards: Path) -> None:
    called: list[str] = []
    cores: list[int | None] = []

    def call(program: str, *settings: str, threads: int | None) -> None:
        """A training or an evaluation that scores as its number says."""
        cores.append(threads)
        called.append(settings[0] if program == "train.py" else settings[1])
        folder = folder_of(settings)
        mode = "both"
        if program == "evaluate.py":
            mode = settings[1].partition("=")[2]
            folder = folder / "evaluation" / mode
        settings_of_run = RunSettings("caption", "0", True, "implicit", mode)
        mark_finished(folder, settings_of_run, scored(len(called) / 100).scores, "whole")

    programs = pretended(call)
    where, path = trainings.Places(tmp_path / "runs", shards), tmp_path / "results.json"
    wanted = trainings.digests([])
    names = list(trainings.run_all(programs, Results(path), wanted, where, [3], []))
    assert len(called) == len(names) == len(wanted)
    assert sorted(names) == sorted(wanted)
    assert set(cores) == {None}
    assert called[1:5] == [
        "experiment=toy_caption",
        "classifier=discriminative",
        "classifier=diffusion",
        "classifier=both",
    ]
    # on a machine that has none of the runs
    elsewhere = trainings.Places(tmp_path / "other", Path("elsewhere"))
    assert list(trainings.run_all(programs, Results(path), wanted, elsewhere, [3], [])) == []
    results = Results(path)
    results.drop("classifier_both", 3)
    called.clear()
    again = list(trainings.run_all(programs, results, wanted, elsewhere, [3], []))
    assert again == ["caption", "classifier_discriminative", "classifier_diffusion", "classifier_both"]
    assert len(called) == 4
    found = results.matching(wanted)
    assert found["captioner_empty"] == Results(path).matching(wanted)["captioner_empty"] != []


def test_trainings_at_once_share_the_cores_and_one_that_fails_lets_the_others_end(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=30)
    begun: list[str] = []

    def call(program: str, *settings: str, threads: int | None) -> None:
        """The first two trainings meet; one of them fails then, the other one comes to its end."""
        begun.append(settings[0])
        assert threads == 2
        if len(begun) > 2:  # begun before the failure was seen
            raise CommandError("has failed, too")
        together.wait()
        if settings[0] == "experiment=toy_caption":
            raise CommandError("has failed")
        folder = folder_of(settings)
        mark_finished(
            folder, RunSettings("label", "0", True, "implicit", "both"), scored(0.5).scores, "whole"
        )

    programs = pretended(call)
    monkeypatch.setattr(trainings.os, "cpu_count", lambda: 4)
    where, results = trainings.Places(tmp_path / "runs", shards), Results(tmp_path / "results.json")
    with pytest.raises(CommandError):
        list(trainings.run_all(programs, results, trainings.digests([]), where, [3], [], jobs=2))
    assert len(begun) <= 3
    assert sorted(begun[:2]) == ["experiment=toy", "experiment=toy_caption"]
    assert len(list(where.runs.glob("label/seed_3_*"))) == 1


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_jobs_are_a_number(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tables.main(["--jobs", jobs])
    assert "--jobs" in capsys.readouterr().err


def test_results_of_other_settings_are_refused_or_replaced(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise CommandError("has failed")

    monkeypatch.setattr(Programs, "call", fail)
    out = tmp_path / "tables.md"
    results = Results(out.with_suffix(".json"))
    results.add("label", 0, scored(0.5))
    results.add("gone", 0, scored(0.5))
    before = results.path.read_bytes()
    assert tables.main(["--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert "tables.json holds 2 results" in message
    assert "--replace" in message
    assert tables.main(["--out", str(out), "--write-only"]) == 1
    # nothing is lost before its successor is there
    assert tables.main(["--out", str(out), "--replace"]) == 1
    assert tables.main(["--out", str(out), "--replace", "--write-only"]) == 0
    assert "| label | 55.4 | 22.6 | - |" in out.read_text()
    assert results.path.read_bytes() == before
    wanted = trainings.digests([])
    for case, digest_ in wanted.items():
        results.add(case, 0, Result(digest_, scored(0.6).scores))
    assert Results(results.path).others(wanted) == [("gone", 0)]
    assert tables.main(["--out", str(out), "--replace", "--seeds", "0"]) == 0  # calls no program
    assert Results(results.path).others(wanted) == []
    assert "| label | 55.4 | 22.6 | 60.0 |" in out.read_text()


def test_results_of_two_processes_go_into_one_file(tmp_path: Path) -> None:
    first, second = Results(tmp_path / "r.json"), Results(tmp_path / "r.json")
    first.add("label", 0, scored(0.5))
    second.add("label", 1, scored(0.6))
    first.add("label", 2, scored(0.7))
    assert Results(tmp_path / "r.json").matching({"label": "made so"}) == {
        "label": [scored(value).scores for value in (0.5, 0.6, 0.7)]
    }


def test_other_frozen_models_train_in_other_folders(tmp_path: Path, shards: Path) -> None:
    """A finished run of the same settings is skipped by train.py, which does not see new weights."""
    folders: list[Path] = []

    def call(program: str, *settings: str, threads: int | None) -> None:
        folders.append(folder_of(settings))
        raise CommandError("enough")

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "clip.safetensors").write_bytes(b"other")
    for weights in (WEIGHTS, tmp_path / "weights"):
        where, results = trainings.Places(tmp_path / "runs", shards), Results(tmp_path / "results.json")
        running = trainings.run_all(pretended(call), results, trainings.digests([], weights), where, [0], [])
        with pytest.raises(CommandError):
            list(running)
    assert len(set(folders)) == 2


@pytest.mark.parametrize("setting", ["foo=1", "optimizer.lr=[1", "optimizer.lr=${gone}"])
def test_settings_that_are_none_are_named(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tables.main(["--out", str(tmp_path / "t.md"), "--write-only", "--set", setting]) == 1
    assert setting in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    ['{"label": 3}', '{"label": {"0": {"digest": "", "scores": 3}}}', '{"label": {"0": {"scores": {}}}}',
     '{"label": {"0": {"digest": "", "scores": {"toy_val": {"pq": "high"}}}}}', "{"],
)  # fmt: skip
def test_a_damaged_file_of_results_is_named(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tables.md"
    out.with_suffix(".json").write_text(content)
    for more in ([], ["--write-only"]):
        assert tables.main(["--out", str(out), *more]) == 1
        assert "tables.json does not hold results" in capsys.readouterr().err
    assert not out.exists()
    assert out.with_suffix(".json").read_text() == content


def test_places_that_cannot_be_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tables.main(["--out", str(tmp_path / "tables.json"), "--write-only"])
    assert "names the Markdown file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tables.main(["--weights", str(tmp_path / "gone"), "--out", str(tmp_path / "new.md"), "--write-only"])
    assert "gone: there is no such folder" in capsys.readouterr().err
    (tmp_path / "other.json").mkdir()
    assert tables.main(["--out", str(tmp_path / "other.md"), "--write-only"]) == 1
    assert "other.json does not hold results" in capsys.readouterr().err


def test_a_run_that_fails_ends_the_tables_and_keeps_what_is_there(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = Programs.call

    def unpainted(programs: Programs, *command: str, threads: int | None = None) -> None:
        """The pictures are there."""
        if "odise_pl.toyworld.make" not in command:
            call(programs, *command, threads=threads)

    monkeypatch.setattr(Programs, "call", unpainted)
    monkeypatch.setattr(tables, "write_captions", lambda shards, weights, workers: None)
    where = ["--run", str(tmp_path), "--shards", str(shards), "--out", str(tmp_path / "docs" / "tables.md")]
    assert tables.main([*where, "--seeds", "0", "--set", "trainer.max_steps=0"]) == 1
    captured = capsys.readouterr()
    assert "train.py experiment=toy" in captured.out
    assert "has failed; when what it says is mended, the same command goes on" in captured.err
    assert not (tmp_path / "docs").exists()
    assert tables.main([*where, "--write-only"]) == 0
    assert "# The paper in miniature" in (tmp_path / "docs" / "tables.md").read_text()
