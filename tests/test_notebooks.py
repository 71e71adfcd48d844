"""Every notebook runs on a demo network with random weights."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from odise_pl.toyworld.demo import run_demo

RUN = 'RUN = "runs/demo"'
MOST_BYTES = 500_000  # of a notebook with its outputs
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    tiny = ["backbone.weights=random", "trainer.max_steps=1", "data.num_workers=0"]
    run_demo("label", folder / "run", folder / "shards", tiny, counts=(16, 1, 1), rows=1)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, run: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    (loading,) = (cell for cell in notebook.cells if RUN in cell.source)
    loading.source = loading.source.replace(RUN, f"RUN = {str(run)!r}")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert _count_pictures(notebook) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_outputs(path: Path) -> None:
    assert _count_pictures(nbformat.read(path, as_version=4)) >= 4
    assert path.stat().st_size <= MOST_BYTES


def _count_pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)
