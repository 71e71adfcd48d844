"""The page of methods against conf/, and its example from file to network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from odise_pl.runs.conf import CONF, compose_config

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def test_every_preset_is_a_row() -> None:
    presets = re.findall(r"^\| `(\w+)` \| \[", PAGE, re.MULTILINE)
    assert set(presets) == {path.stem for path in CONF.glob("method/*.yaml")}


@pytest.mark.parametrize("name", [path.stem for path in CONF.glob("method/*.yaml")])
def test_preset_has_its_own_name_in_reports(name: str) -> None:
    assert compose_config("train", ["run_dir=.", f"method={name}"]).model.method == name


def test_example_is_a_method_in_one_file(tmp_path: Path) -> None:
    title, text = re.findall(r'```yaml title="conf/(method/\w+\.yaml)"\n(.*?)```', PAGE, re.DOTALL)[0]
    (tmp_path / "method").mkdir()
    (tmp_path / title).write_text(text)
    found = [f"hydra.searchpath=[file://{tmp_path}]", f"method={Path(title).stem}"]
    small = ["experiment=laptop", "run_dir=.", "model.head.queries=7"]
    config = compose_config("train", [*small, *found])
    network = instantiate(config.model)
    assert network.text_projection.null_embed.shape == (1, network.clip.embed_dim)
    with torch.no_grad():
        output = network.decode(torch.rand(1, 3, 64, 64))[-1]
    assert output.mask_embed.shape == (1, 7, network.clip.embed_dim)
    assert len(config.fusion.mask_prompt) == len(config.fusion.clip_prompt) == 14
