"""Published networks: a folder with the trained weights of a run, its description and its scores.

``config.json`` describes the network as a checkpoint does, and is trusted as little. ``model.safetensors``
holds the trained weights under the network's own names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from odise_pl.checkpoints.files import CONFIG, MODEL, PREFIX
from odise_pl.files import write_bytes, write_text
from odise_pl.models.weights import WeightsError, read_checkpoint, require_finite

FORMAT, VERSION = "odise_pl", 1
_GROUPVIT = "vision_model.encoder.stages.0.group_token"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "position_ids")  # the backbone has its own


def read_any_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a run or the official release, or ``model.safetensors`` of a published folder.

    A GroupViT in transformers' format is a checkpoint, too.

    Returns:
        the content of the file; for a published network as a run's checkpoint has it, without training state.

    Raises:
        WeightsError: a file is missing, damaged, or of a newer version.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    if _GROUPVIT in checkpoint:
        weights = {name: value for name, value in checkpoint.items() if not name.endswith(_BUFFERS)}
        return {"state_dict": {f"{PREFIX}backbone.model.{name}": value for name, value in weights.items()}}
    if path.name != MODEL or not path.with_name(CONFIG).is_file():
        return checkpoint
    config = _read_config(path.with_name(CONFIG))
    kept = {"record": config.get("network"), "vocabulary": config.get("vocabulary")}
    state = {f"{PREFIX}{name}": tensor for name, tensor in checkpoint.items()}
    return {"state_dict": state, "odise": kept, "global_step": config.get("step")}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config.get("format"), config.get("version")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged ({error!a:.80}); get the folder again") from error
    if found[0] != FORMAT:
        raise WeightsError(f"{path} does not describe a published network of this project")
    if found[1] != VERSION:
        raise WeightsError(f"{path} has version {found[1]!a:.20} of its format, this project reads {VERSION}")
    return dict(config)


def write_published(folder: Path, checkpoint: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Args:
        folder: an existing one.
        checkpoint: of a run, see :func:`~odise_pl.models.weights.read_checkpoint`.
        about: further values of ``config.json``; its ``network`` is the record of the network's settings.

    Raises:
        WeightsError: a weight is not finite.
        OSError: a file cannot be written.
    """
    # copies, because safetensors refuses tensors that share memory
    state = {
        name.removeprefix(PREFIX): tensor.clone().contiguous()
        for name, tensor in checkpoint["state_dict"].items()
    }
    require_finite(state, str(folder))
    facts = {"vocabulary": checkpoint["odise"]["vocabulary"], "step": checkpoint["global_step"]}
    config = {"format": FORMAT, "version": VERSION, **about, **facts}
    write_bytes(folder / MODEL, save(state, {"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")
