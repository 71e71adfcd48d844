"""Figures in the documentation come from docs/figures."""

import json
import re
import shutil
import statistics
from pathlib import Path

import pytest

from odise_pl.runs.published import ABLATIONS
from scripts.docs import comparisons
from scripts.docs.numbers import PAGES, ROOT, load_figures, main
from scripts.docs.tables import TABLES

FIGURES = ROOT / "docs" / "figures"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(FIGURES, tmp_path / "docs" / "figures")
    return tmp_path


def shown_tables() -> list[str]:
    pages = (page for pattern in PAGES for page in ROOT.glob(pattern))
    shown = {name for page in pages for name in re.findall(r"<!-- table:(\w+) -->", page.read_text("utf-8"))}
    return sorted(shown & TABLES.keys())


def check(project: Path, text: str, *arguments: str) -> int:
    (project / "README.md").write_text(text, encoding="utf-8")
    return main(["--root", str(project), *arguments])


def read(project: Path) -> str:
    return (project / "README.md").read_text(encoding="utf-8")


def test_pages_agree_with_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_every_figure_tells_its_origin() -> None:
    for name, content in load_figures(FIGURES).items():
        assert {"what", "command", "machine", "version"} <= set(content["about"]), name


def test_changed_number_and_table_are_found(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "One: <!-- n:demo.toy_open.novel.pq -->1.0<!-- /n -->.\n\n<!-- table:demo -->\n<!-- /table -->\n"
    assert check(project, text) == 0
    assert check(project, read(project), "--check") == 0
    capsys.readouterr()
    file = project / "docs" / "figures" / "demo.json"
    demo = json.loads(file.read_text())
    demo["toy_open"]["novel"]["pq"] += 1
    file.write_text(json.dumps(demo))
    before = read(project)
    assert check(project, before, "--check") == 1
    assert read(project) == before
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "README.md" in lines[0]
    assert "n:demo.toy_open.novel.pq" in lines[0]
    assert "README.md" in lines[1]
    assert "table:demo" in lines[1]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("small_world.supervision.label.toy_open.pq_novel", "25.1 ± 0.5"),
        ("small_world.supervision.label.toy_open.pq_novel.mean", "25.1"),
        ("small_world.supervision.label.toy_open.pq_novel.std:.2f", "0.50"),
        ("weights.clip.parameters", "1991041"),
        ("weights.clip.parameters:,", "1,991,041"),
    ],
)
def test_number_formats(project: Path, key: str, text: str) -> None:
    assert check(project, f"A <!-- n:{key} --><!-- /n -->\n") == 0
    assert read(project) == f"A <!-- n:{key} -->{text}<!-- /n -->\n"


@pytest.mark.parametrize("key", ["demo.toy_opn.pq", "memory.cards", "nothing"])
def test_unknown_keys_are_errors(project: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    text = f"A <!-- n:{key} -->1<!-- /n -->\n"
    assert check(project, text) == 1
    assert read(project) == text
    assert f"README.md: unknown n:{key}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "A <!-- n:demo.minutes -->27\n",
        "A 27<!-- /n -->\n",
        "A <!-- n:demo.minutes -->27 <!-- n:demo.minutes -->27<!-- /n -->\n",
        "<!-- n:demo.minutes -->27<!-- /n --> minutes\n",
        "* <!-- n:demo.minutes -->27<!-- /n --> minutes\n",
        "<!-- table:nothing -->\n<!-- /table -->\n",
    ],
    ids=["unclosed", "unopened", "nested", "line start", "item start", "unknown table"],
)
def test_faulty_markers_are_errors(project: Path, text: str) -> None:
    assert check(project, text) == 1
    assert check(project, text, "--check") == 1


def test_fenced_code_stays(project: Path) -> None:
    text = "```\n<!-- n:KEY -->\n```\nA <!-- n:demo.minutes -->16.7<!-- /n -->\n"
    assert check(project, text, "--check") == 0


@pytest.mark.parametrize("name", shown_tables())
def test_tables_are_complete(name: str) -> None:
    table = TABLES[name](load_figures(FIGURES))
    assert table.rows
    assert all(len(row) == len(table.header) for row in table.rows)


def test_small_world_is_the_mean_of_its_runs() -> None:
    content = load_figures(FIGURES)["small_world"]
    published = {ablation.name: ablation.rows for ablation in ABLATIONS}
    for name, table in content["tables"].items():
        _, folders = comparisons.FOLDERS.get(name, ("", {}))
        own = {row: comparisons.PUBLISHED.get(paper or "") for row, (_, paper) in folders.items()}
        for row in table["rows"]:
            for metric, values in row["runs"].items():
                assert len(values) == len(row["seeds"])
                mean, spread = row[metric]
                assert mean == pytest.approx(statistics.mean(values), abs=1e-4)
                known = statistics.stdev(values) if len(values) > 1 else None
                assert spread == pytest.approx(known, abs=1e-4)
            paper = (own or published[name]).get(row["name"])
            assert row["paper"] == (paper and paper._asdict())
