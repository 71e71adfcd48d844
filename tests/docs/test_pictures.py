from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from odise_pl.errors import UserError
from scripts.docs import browser, pictures
from scripts.docs.plots import draw_tables
from scripts.docs.style import in_dark, place

IMAGES = Path(__file__).parents[2] / "docs" / "images"
NAMES = {
    *(f"{name}.png" for name in ("app", "example", "hero", "words", "open_set", "kmeans", "tensorboard")),
    *(
        f"{name}{end}"
        for name in ("architecture", "curves", "supervision", "ablations")
        for end in (".svg", "-dark.svg")
    ),
}


def test_all_pictures_are_there_and_small() -> None:
    assert {path.name for path in IMAGES.iterdir()} >= NAMES
    assert sum(path.stat().st_size for path in IMAGES.iterdir()) < 2e6


def test_the_dark_architecture_is_up_to_date() -> None:
    light, dark = IMAGES / "architecture.svg", IMAGES / "architecture-dark.svg"
    ElementTree.parse(dark)
    assert dark.read_text() == in_dark(light.read_text()), "make pictures"


@pytest.mark.slow
def test_tables_give_the_same_file_each_time(tmp_path: Path) -> None:
    row = {"reference": "a", "seeds": [0, 1], "runs": {"toy_open.pq": [30, 31], "toy_open.pq_base": [40, 42]}}
    rows = [{"name": "a", "paper": {"coco": 40, "ade20k": 20}, **row}, {"name": "b", "paper": None, **row}]
    tables = {name: {"rows": rows} for name in ("supervision", "timestep", "captioner", "classifier")}
    novel = {"toy_open.pq_novel": [20, 21], "toy_open.miou_novel": [30, 32]}
    methods = [row | {"runs": novel} for row in rows]
    dense = {"name": "c", "paper": None, **row, "runs": {"toy_open.miou_novel": [9, 10]}}
    tables["method"] = {"rows": [*methods, dense]}
    efforts = ("400 steps, 16 queries", "100 steps", "1600 steps", "8 queries")
    tables["effort"] = {"rows": [row | {"name": name, "paper": None} for name in efforts]}
    costs = {name: {"ms": 50.0} for name in "abc"}
    (tmp_path / "figures.json").write_text(json.dumps({"tables": tables, "costs": costs}))
    first, again = (
        [path.read_text() for path in draw_tables(tmp_path / "figures.json", tmp_path)] for _ in range(2)
    )
    assert first == again
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn >= {f"{name}{end}.svg" for name in ("methods", "effort") for end in ("", "-dark")}


def test_missing_run_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make demo"):
        pictures.draw_pictures(tmp_path, tmp_path, tmp_path)


def test_missing_browser_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="chromium"):
        browser.find_browser()


def test_tiles_have_round_corners() -> None:
    picture = Image.new("RGB", (60, 60), "white")
    place(picture, Image.new("RGB", (10, 10)), (10, 10), (40, 40))
    assert picture.getpixel((10, 10)) == (255, 255, 255)
    assert picture.getpixel((30, 30)) == (0, 0, 0)
