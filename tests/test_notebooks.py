"""Every notebook runs on a demo network with random weights."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from odise_pl.toyworld.demo import run_demo

ROOT = Path(__file__).parents[1]
SHORTER = {  # what notebooks set: in tests
    "STEPS = 60": "STEPS = 1",
    "PROBES, PICTURES, TESTED = 3, 60, 200": "PROBES, PICTURES, TESTED = 2, 2, 3",
    "TIMESTEPS = (0, 50, 100, 200, 300, 500, 700, 900)": "TIMESTEPS = (0, 900)",
}
MOST_BYTES = 500_000  # of a notebook with its outputs
FEWEST_PICTURES = 3
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to start notebooks in, after a demo."""
    folder = tmp_path_factory.mktemp("project")
    tiny = ["backbone.first.weights=random", "trainer.max_steps=1", "data.num_workers=0"]
    for run, settings in {"demo": tiny, "toy": [*tiny, "captioner=implicit"]}.items():
        run_demo("label", folder / "runs" / run, folder / "shards", settings, counts=(16, 1, 1), rows=1)
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, project: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for text, shorter in SHORTER.items():
            cell.source = cell.source.replace(text, shorter)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(project)}}).execute()
    assert _count_pictures(notebook) >= FEWEST_PICTURES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_imports_what_there_is(path: Path) -> None:
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    lines = [line for line in "\n".join(cells).splitlines() if line.startswith("from odise_pl")]
    exec("\n".join(lines), {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_outputs(path: Path) -> None:
    assert _count_pictures(nbformat.read(path, as_version=4)) >= FEWEST_PICTURES
    assert path.stat().st_size <= MOST_BYTES


def test_names_of_notebooks_are_listed() -> None:
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in text for path in NOTEBOOKS)


def _count_pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs)
