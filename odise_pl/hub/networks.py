"""Publish trained networks, and find them: in files, folders and on the Hub."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from odise_pl.checkpoints.description import (
    SIDES,
    NetworkSettings,
    frozen_files,
    read_record,
)
from odise_pl.checkpoints.files import CONFIG, MODEL, find_checkpoint, last_checkpoint
from odise_pl.errors import DownloadError, SettingError, hub_errors
from odise_pl.files import is_path, write_text
from odise_pl.hub.card import CARD, model_card
from odise_pl.runs.record import EVALUATIONS, read_command, read_settings

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def resolve(checkpoint: str | Path) -> Path:
    """The file of a checkpoint; a network that is named by its id on the Hub is downloaded, once.

    Args:
        checkpoint: a run (its newest checkpoint), a file, a published folder, or ``OWNER/NAME`` on the Hub. A
            path in an existing folder, and one in ``runs/``, is never an id.

    Raises:
        SettingError: there is no such checkpoint.
        DownloadError: it cannot be downloaded.
    """
    path = Path(checkpoint)
    found = find_checkpoint(path)
    if found is None and _is_id(str(checkpoint)):
        return _download(str(checkpoint))
    if found is None or not found.is_file():
        what = "has no checkpoints" if path.is_dir() else "does not exist"
        raise SettingError(
            f"{path} {what}; give a run, a checkpoint, an official release, a published folder, or "
            "OWNER/NAME on the Hub"
        )
    return found


def _is_id(name: str) -> bool:
    owner = name.partition("/")[0]
    misspelt = owner == "runs" or is_path(name)
    return _ID.fullmatch(name) is not None and not misspelt


def _download(name: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    with hub_errors(name):
        try:  # two files of one commit, whatever else the repository holds
            config = Path(hf_hub_download(name, CONFIG))
            return Path(hf_hub_download(name, MODEL, revision=config.parent.name))
        except errors.EntryNotFoundError as error:
            if not isinstance(error, errors.HfHubHTTPError):  # without a network
                raise
            missing = f"it lacks {CONFIG} or {MODEL}"
            raise DownloadError(f"{name} is not a network of this project: {missing}") from error


def save_pretrained(run: Path, folder: Path, name: str, licence: str | None = None) -> None:
    """Write the newest network of a run as a folder to publish: description, trained weights and model card.

    Args:
        run: folder of the run.
        folder: made if it is missing; earlier files are replaced.
        name: ``OWNER/NAME``, for the model card.
        licence: of the trained weights, for the model card: an identifier of the Hub.

    Raises:
        SettingError: the run has no checkpoint, or the folder cannot be written.
        WeightsError: the checkpoint is damaged or does not describe its network.
    """
    from odise_pl.checkpoints.published import write_published
    from odise_pl.models.weights import WeightsError, read_checkpoint

    path = last_checkpoint(run)
    if path is None:
        raise SettingError(f"{run} has no checkpoints; give the folder of a run")
    checkpoint = read_checkpoint(path)
    if "odise" not in checkpoint:
        raise WeightsError(f"{path} does not describe its network")
    # the run's own, to which a checkpoint's limits do not apply
    record = checkpoint["odise"]["record"]
    named = [key for key, *_ in frozen_files(record.get("model", record.get("config", {})))]
    network = portable(read_record(record, str(path), named))
    results, command = _results(run, checkpoint["global_step"], network), read_command(run)
    about = {"command": command, "scores": {result["data"]: result["scores"] for result in results}}
    card = model_card(name, network, checkpoint, results, command, licence)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_published(folder, checkpoint, {"network": network.record(), **about})
        write_text(folder / CARD, card)
    except OSError as error:
        raise SettingError(f"--folder {folder}: {error}") from error


def portable(network: NetworkSettings) -> NetworkSettings:
    """A copy that names no folder of this machine: frozen weights are looked for in ``paths.weights``."""
    return network.changed(
        {
            key: f"${{paths.weights}}/{Path(weights).name}"
            for key, section, name in frozen_files(network.model)
            if isinstance(weights := section.get(name), str)
            and is_path(weights)
            and not weights.startswith("${paths.")
        }
    )


def _results(run: Path, step: int, network: NetworkSettings) -> list[dict[str, Any]]:
    """The newest result of each set that this network had at this step."""
    found: dict[str, dict[str, Any]] = {}
    paths = [*run.glob("results/*/results.json"), *run.glob(f"{EVALUATIONS}/*/*/results.json")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["about"].get("step") == step and _is_of(network, path.parent.parent):
            found[result["data"]] = result
    return list(found.values())


def _is_of(network: NetworkSettings, folder: Path) -> bool:
    """Whether results are of this network: those of a training are, an evaluation can change settings."""
    kept = read_settings(folder)
    if kept is None:
        return True
    sides = tuple(kept.get(name) for name in SIDES)
    return sides == network.sides and _without_weights(kept["network"]) == _without_weights(network.model)


def _without_weights(model: Mapping[str, Any]) -> str:
    """A network's settings in a comparable form, without the places of its files."""
    plain = copy.deepcopy(dict(model))
    for _, section, name in frozen_files(plain):
        section[name] = None
    return json.dumps(plain, sort_keys=True)


def push(source: Path, name: str, private: bool = False, licence: str | None = None) -> str:
    """Upload a run, or a folder from :func:`save_pretrained`, to the Hub.

    Args:
        source: folder of the run, or published folder.
        name: ``OWNER/NAME``; made if it is missing.
        private: whether only its owner can read a repository that is made.
        licence: see :func:`save_pretrained`.

    Returns:
        the address of the repository.

    Raises:
        UserError: there is nothing to upload, or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    check_id(name)
    if not (source / CONFIG).is_file():
        with TemporaryDirectory() as folder:
            save_pretrained(source, Path(folder), name, licence)
            return push(Path(folder), name, private)
    with hub_errors(name):
        address = HfApi().create_repo(name, private=private, exist_ok=True)
        files = [CONFIG, MODEL, CARD]
        HfApi().upload_folder(
            repo_id=name, folder_path=source, allow_patterns=files, commit_message="Upload the network"
        )
    return str(address)


def check_id(name: str) -> None:
    """Raise SettingError unless ``name`` is ``OWNER/NAME``."""
    if not _ID.fullmatch(name):
        raise SettingError(f"{name}: give the id as OWNER/NAME, with letters, digits, '-', '_' and '.'")
