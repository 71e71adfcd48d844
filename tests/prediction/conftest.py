"""A network that finds something, and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shard_members import members

from odise_pl.prediction.segmenter import Segmenter


@pytest.fixture(scope="session")
def network(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a network that finds some segments, by noise on its head."""
    content, generator = torch.load(checkpoint, weights_only=False), torch.Generator().manual_seed(0)
    for name, value in content["state_dict"].items():
        if name.startswith(("model.mask_decoder.", "model.text_projection.")):
            value += 0.1 * torch.randn(value.shape, generator=generator)
    path = tmp_path_factory.mktemp("network") / "net.ckpt"
    torch.save(content, path)
    return path


@pytest.fixture(scope="session")
def photos(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    (shard, *_) = sorted(scene_shards.glob("*.tar"))
    images = {name: data for name, data in members(shard).items() if name.endswith(".jpg")}
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def segmenter(network: Path) -> Segmenter:
    """It keeps all segments."""
    return Segmenter.from_pretrained(network, {"model.inference.overlap_threshold": 0.0})
