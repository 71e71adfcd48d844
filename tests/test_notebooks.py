"""Every notebook is executed, on a network of the demo with random weights."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from odise_pl.toyworld import demo

ROOT = Path(__file__).parents[1]
RUN = 'RUN = "runs/demo"'
MOST_BYTES = 500_000  # of a notebook with its outputs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    tiny = ["backbone.weights=random", "trainer.max_steps=1", "data.num_workers=0"]
    settings = [text for setting in tiny for text in ("--set", setting)]
    places = ["--run", str(folder / "run"), "--shards", str(folder / "shards"), "--pictures", "1"]
    assert demo.main([*places, "--count", "16", "1", "1", *settings]) == 0
    return folder / "run"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_own_folder(path: Path, run: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert len(_pictures(notebook)) >= 4, "it is kept with its outputs: jupyter execute --inplace"
    loading = [cell for cell in notebook.cells if RUN in cell.source]
    assert len(loading) == 1
    loading[0].source = loading[0].source.replace(RUN, f"RUN = {str(run)!r}")
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    assert len(_pictures(notebook)) >= 4
    assert path.stat().st_size <= MOST_BYTES


def _pictures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]
