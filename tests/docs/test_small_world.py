"""The command that makes the small world's tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from odise_pl import __version__
from odise_pl.errors import UserError
from odise_pl.runs.comparison import Row, as_json, from_json
from odise_pl.runs.conf import compose_config
from odise_pl.runs.finished import FinishedRun
from odise_pl.runs.record import AblationSettings, mark_finished, write_settings
from scripts.docs import comparisons, small_world
from scripts.docs.tables import scores
from scripts.pretrain_toyworld.__main__ import Kind
from tests.docs.commands import check

SEEDS = (0, 1, 2)
OTHERS = [name for name in comparisons.TABLES if name != "method"]
START = (
    "400 steps, 16 queries, 0.001 learning rate, 1 times that rate for captioner and projections, "
    "128 pixels of input"
)
EFFORTS = [f"{value:g} {name}" for name, _, _, values in comparisons.EFFORT for value in values][1:]
CLASSIFIERS = {"discriminative": 39, "diffusion": 12, "both": 35}


def finish(folder: Path, seed: int, settings: AblationSettings, pq: float, weights: str = "sd") -> None:
    write_settings(folder, {"seed": seed, "backbone": {"weights": weights}})
    mark_finished(folder, settings, {"toy_open": {"pq": (pq + seed) / 100}})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The runs of all tables but seed 1 of the random weights."""
    for seed in SEEDS:
        for name, words in comparisons.TRAININGS.items():
            if (name, seed) == ("random", 1) or name == "representation/toy_dino":
                continue
            if name.startswith(("representation", "effort", "recipe")):
                plain = AblationSettings("label", "none", False, "none", "both")
                finish(tmp_path / "small_world" / name / f"seed_{seed}", seed, plain, len(name), name)
                continue
            model = "label" if name in ("label", "random") else "caption"
            steps = {"several": "0+100+200"}.get(Path(name).name, Path(name).name)
            settings = AblationSettings(
                model,
                steps if name.startswith("timestep") else "0",
                "captioner.learnable_time=false" not in words,
                steps if name.startswith("captioner") else "implicit",
                "both",
            )
            weights = "random" if name == "random" else "sd"
            finish(tmp_path / "small_world" / name / f"seed_{seed}", seed, settings, len(name), weights)
        for classifier, pq in CLASSIFIERS.items():
            folder = tmp_path / "small_world" / "classifier" / f"seed_{seed}" / classifier
            finish(folder, seed, AblationSettings("caption", "0", True, "implicit", classifier), pq)
    return tmp_path


def test_commands_parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(comparisons, "WEIGHTS", tmp_path)
    commands = list(comparisons.commands([*comparisons.TABLES], SEEDS))
    for words in comparisons.commands([*comparisons.TABLES], SEEDS[:1]):
        check(words)
    trained = len(SEEDS) * (len(comparisons.TRAININGS) + len(comparisons.METHODS) + 1)
    assert len({tuple(words) for words in commands}) == 1 + len(Kind) + trained
    assert {words[4] for words in commands if words[0] == "python"} == set(Kind)


def test_tables_are_made_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(comparisons, "WEIGHTS", tmp_path)
    methods = list(comparisons.commands(["method"], [3]))
    trained = [word for words in methods for word in words if word.startswith("run=")]
    assert trained == [f"run=small_world/{name}/seed_3" for name in comparisons.METHOD_FOLDERS.values()]
    assert [words[4] for words in methods if words[0] == "python"] == ["supervised_conv", "clip_conv"]
    classifiers = list(comparisons.commands(["classifier"], [3]))
    assert [words[1] for words in classifiers] == ["toyworld", "train", "evaluate"]


def test_rows_are_those_of_the_documentation(runs: Path) -> None:
    tables = small_world.collect(runs, OTHERS)
    found = {name: [(row.name, row.reference, row.seeds) for row in rows] for name, rows in tables.items()}
    every = [*SEEDS]
    steps = ("0", "100", "200", "500", "0+100+200", "learnable")
    assert found == {
        "supervision": [
            ("label", "label", every),
            ("caption", "label", every),
            ("label, random diffusion weights", "label", [0, 2]),
        ],
        "timestep": [(step, "0", every) for step in steps],
        "captioner": [
            (name, "implicit", every) for name in ("empty", "heuristic", "implicit", "implicit, time learned")
        ],
        "classifier": [(name, "both", every) for name in CLASSIFIERS],
        "representation": [
            *(
                (name, "text-conditional diffusion", every)
                for name in (*comparisons.REPRESENTATIONS, "text-conditional diffusion")
                if name != "DINO"
            ),
            ("text-conditional diffusion, untrained", "text-conditional diffusion", [0, 2]),
        ],
        "effort": [(name, START, every) for name in (START, "100 steps", *EFFORTS)],
        "recipe": [(name, "experiment=toy", every) for name in ("experiment=toy", *comparisons.RECIPE)],
    }
    assert tables["timestep"][-1].scores["toy_open.pq"][2] == pytest.approx(len("caption") + 2)
    assert {row.name for row in tables["supervision"] if row.paper} == {"label", "caption"}
    assert [row.paper is None for row in tables["captioner"]] == [False, False, False, True]


def test_rows_of_methods_are_named_by_their_folders(tmp_path: Path) -> None:
    settings = AblationSettings("label", "0", True, "implicit", "both", method="fc_clip")
    for name, seed in (("fc_clip", 0), ("fc_clip", 1), ("odise_label", 1), ("fc_clip_caption", 0)):
        folder = tmp_path / "small_world" / comparisons.METHOD_FOLDERS[name] / f"seed_{seed}"
        finish(folder, seed, settings, len(name), weights=f"of seed {seed}")
    rows = small_world.collect(tmp_path, ["method"])["method"]
    assert [(row.name, row.reference, row.seeds) for row in rows] == [
        ("odise_label", "odise_label", [1]),
        ("fc_clip", "odise_label", [0, 1]),
        ("fc_clip_caption", "odise_label", [0]),
    ]
    assert rows[0].paper is not None


def test_figures_give_the_tables(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "small_world.json"
    file.write_text(json.dumps({"about": {}, "repeated": {"first": 1}}))
    small_world.write(small_world.collect(runs, OTHERS), file)
    written = json.loads(file.read_text())
    assert written["repeated"] == {"first": 1}
    assert {table["version"] for table in written["tables"].values()} == {__version__}
    table = scores({"small_world": written}, "classifier")
    assert [row[-2:] for row in table.rows] == [("40.0 ± 2.5", "3"), ("13.0 ± 2.5", "3"), ("36.0 ± 2.5", "3")]
    table = scores({"small_world": written}, "representation")
    assert [row[1:3] for row in table.rows[:2]] == [("-", "21.0"), ("41.4", "21.4")]


def test_missing_runs_are_named(runs: Path) -> None:
    (runs / "small_world" / "classifier").rename(runs / "elsewhere")
    with pytest.raises(UserError, match="classifier"):
        small_world.collect(runs, OTHERS)


def test_seeds_of_other_machines_are_added(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "small_world.json"
    known = [Row("both", "both", None, {"toy_open.pq": {0: 1.0, 7: 50.0}}), Row("old", "both", None, {})]
    earlier = {"version": "0.0.1", **as_json({"classifier": known})["classifier"]}
    file.write_text(json.dumps({"tables": {"classifier": earlier}}))
    found = small_world.collect(runs, ["classifier"])
    small_world.write(found, file, add=True)
    table = json.loads(file.read_text())["tables"]["classifier"]
    assert table["version"] == f"0.0.1, {__version__}"
    rows = {row.name: row for row in from_json(table)}
    assert rows["both"].scores["toy_open.pq"] == pytest.approx({0: 35.0, 7: 50.0, 1: 36.0, 2: 37.0})
    assert set(rows) == {*CLASSIFIERS, "old"}
    small_world.write(found, file)
    rows = {row.name: row for row in from_json(json.loads(file.read_text())["tables"]["classifier"])}
    assert rows["both"].seeds == [*SEEDS]
    assert set(rows) == {*CLASSIFIERS}


def test_costs_of_methods_are_measured(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AblationSettings("label", "0", True, "implicit", "both", method="odise_label")
    run = FinishedRun(checkpoint, settings, {})
    finish(tmp_path / "small_world" / "label" / "seed_0", 0, settings, 1)
    monkeypatch.setattr(small_world, "find_runs", lambda folder: [run])
    cost = small_world.costs_of_methods(tmp_path)["odise_label"]
    assert 0 < cost["trained_million"] < cost["parameters_million"] < 13
    assert cost["ms"] > 0
    row = Row("odise_label", None, None, {"toy_val.pq": {0: 50.0}})
    written = {"tables": as_json({"method": [row]}), "costs": {"odise_label": cost}}
    assert scores({"small_world": written}, "method").rows[0][3] == f"{cost['ms']:.0f}"


def test_commands_are_listed_without_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["small_world", "--list", "--seeds", "3"])
    monkeypatch.setattr(small_world, "execute", lambda command: pytest.fail(f"{command} ran"))
    assert small_world.main() == 0
    label = "odise train run=small_world/label/seed_3 seed=3 experiment=toy trainer.max_steps=400"
    assert label in capsys.readouterr().out.splitlines()


def test_failure_of_a_command_is_noticed() -> None:
    assert small_world.execute(["odise", "--help"])
    assert not small_world.execute(["odise", "report", "nowhere"])


def test_recipe_ends_with_the_demo() -> None:
    light_with_muon, demo = [settings for _, settings in comparisons.RECIPE.values()][1:]
    pair = ("backbone=two", "backbone@backbone.first=toy", "backbone@backbone.second=toy_clip")
    built = compose_config("train", ["run=x", *light_with_muon, *pair, "backbone.window=128"])
    assert built == compose_config("train", ["run=x", *demo])
