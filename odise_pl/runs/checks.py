"""Checks before torch loads, so that a run without data or weights fails within seconds.

The classes that take numbers check their ranges.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from odise_pl.checkpoints.description import NetworkSettings
from odise_pl.data.manifest import open_shard_set, parse_eval_sets
from odise_pl.data.records import DataError
from odise_pl.errors import SettingError, UserError, check_flag, check_number
from odise_pl.files import is_path
from odise_pl.models.backbones.timesteps import check_timesteps
from odise_pl.runs.conf import CONF
from odise_pl.runs.resume import checkpoint_path, last_checkpoint
from odise_pl.vocabulary import VocabularyError, load_vocabulary, seen_classes

_LOGGERS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # Lightning's, with the packages that they need

# parts of the network that learn beside what a first stage has learned, and the preset of that
_FIRST_STAGES = {"refinement": "maskclip_proposals", "generator": "zs3net_seen"}

# settings of one of two backbones that are not read
_SHARED = re.compile(r"\+*backbone\.(first|second)(?=\.(window|window_batch|channels)=)")


def check_training(config: DictConfig) -> None:
    """Check the settings of a training, and that its files exist.

    Raises:
        SettingError: lists all problems, each with a way out.
    """
    unfit = [*_unfit_captioner(config)]
    problems = [
        *_bad_settings(config),
        *unfit,
        *_missing_logger(config),
        *_bad_vocabularies(config),
        *_bad_split(config, config.data.train),
        *missing_weights(NetworkSettings.of_config(config), config.paths),
        *_missing_shards(config, "train", "val"),
    ]
    if unfit:  # its files are not needed
        problems = [problem for problem in problems if not problem.startswith("captioner.weights=")]
    else:
        problems += missing_captions(config, ("train", "val"))
    starts = config.init_from is not None and config.ckpt is None and last_checkpoint(config.run_dir) is None
    if starts and not checkpoint_path(config.init_from, config.run_dir).is_file():
        problems.append(f"init_from={config.init_from} is neither a checkpoint nor a run with checkpoints")
    raise_problems(problems)


def check_evaluation(config: DictConfig) -> None:
    """Check the settings of an evaluation and its files.

    Raises:
        SettingError: lists all problems, each with a way out.
    """
    problems = [*_bad_vocabularies(config), *_missing_shards(config, "val")]
    problems += _bad_split(config, *parse_eval_sets(config.data.val).values())
    if config.vocabulary.train is not None and config.data.get("unseen") is not None:
        problems.append(
            "vocabulary.train and data.unseen both say which classes are seen: remove one of them"
        )
    if (config.ckpt is None) == (config.predictions is None):
        problems.append("give ckpt=PATH, or predictions=DIR to score predictions of any model")
    elif config.predictions is not None and not Path(config.predictions).is_dir():
        problems.append(f"predictions={config.predictions}: no such folder")
    elif config.ckpt is not None and not (path := checkpoint_path(config.ckpt, config.run_dir)).is_file():
        problems.append(f"ckpt={config.ckpt}: {path} is neither a checkpoint nor a run with checkpoints")
    elif config.predictions is not None and config.save_predictions is not None:
        problems.append("save_predictions cannot be combined with predictions=DIR: remove one of them")
    raise_problems(problems)


def check_network(
    network: NetworkSettings, paths: Mapping[str, Any], config: DictConfig | None = None
) -> None:
    """Check that a network's weights exist, and with ``config`` the captions that it reads from shards.

    Raises:
        SettingError: lists all problems, each with a way out.
    """
    captions = [] if config is None else missing_captions(config, ("val",), network.model["captioner"])
    raise_problems([*missing_weights(network, paths), *captions])


def first_stage(config: DictConfig) -> tuple[str, str] | None:
    """The part of the network that is trained in a second stage, and the ``method`` of the first."""
    text = "_clip_text" if str(config.model.get("method")).endswith("_clip_text") else ""
    found = ((part, method + text) for part, method in _FIRST_STAGES.items() if config.model.get(part))
    return next(found, None)


def raise_problems(problems: Sequence[str]) -> None:
    """Raise SettingError with all problems, if there are any."""
    if problems:
        raise SettingError("\n  - ".join(["cannot start:", *problems]))


def _bad_settings(config: DictConfig) -> Iterator[str]:
    """Settings that would fail only after minutes, or silently do something else."""
    checks: list[Callable[[], object]] = []
    if HydraConfig.initialized() and "backbone" not in HydraConfig.get().runtime.choices:
        yield "backbone: for two, set backbone=two backbone@backbone.first=NAME backbone@backbone.second=NAME"
    for key in filter(_SHARED.match, HydraConfig.get().overrides.task if HydraConfig.initialized() else ()):
        yield f"{key}: two backbones share their windows and width; set {_SHARED.sub('backbone', key)}"
    if "timesteps" in config.backbone:  # of a diffusion model
        checks.append(partial(check_timesteps, config.backbone.timesteps))
    for name, least in (("global_batch", 1), ("validate_every", 1), ("trainer.max_steps", 1), ("seed", 0)):
        checks.append(partial(check_number, name, OmegaConf.select(config, name), least))
    for name in ("learnable_time", "on_the_fly"):
        checks.append(partial(check_flag, f"captioner.{name}", config.captioner.get(name, False)))
    for check in checks:
        try:
            check()
        except SettingError as error:
            yield str(error)
    strategy = OmegaConf.select(config, "trainer.strategy._target_")
    if "ShardedStrategy" in str(strategy) and config.trainer.precision not in ("32-true", "bf16-mixed"):
        yield f"trainer.precision={config.trainer.precision}: choose bf16-mixed or 32-true with trainer=fsdp"
    yield from _bad_supervision(config)
    if (first := first_stage(config)) and config.init_from is None and config.ckpt is None:
        yield f"model.{first[0]} needs a trained network: add init_from=RUN, a run of method={first[1]}"
    if config.grounding is not None and config.data.words < 1:
        yield f"data.words={config.data.words}: caption supervision needs words of captions; the paper uses 8"


def _unfit_captioner(config: DictConfig) -> Iterator[str]:
    """Found before its files are asked for. Backbones of other classes say so when they are built."""
    name = config.captioner._target_.rpartition(".")[2].removesuffix("_captioner")
    sections = (config.backbone, config.backbone.get("first"), config.backbone.get("second"))
    parts = {str(part._target_).rpartition(".")[2] for part in sections if part is not None}
    if "BackboneSettings" in parts and name == "none":
        yield "captioner=none: this backbone is a diffusion model, which needs one: choose captioner=empty"
    if parts <= {"JointSettings", "TimmSettings", "ClipFeatureSettings"} and name != "none":
        yield f"captioner={name}: this backbone takes no text: choose captioner=none"


def _bad_supervision(config: DictConfig) -> Iterator[str]:
    """Losses that do not train what the network needs."""
    supervision, weight = config.model.supervision, OmegaConf.select(config, "criterion.weights.regions") or 0
    learns = [
        f"clip.{name}={config.clip[name]}{preset}"
        for name, preset in {"trained": "", "prompt_tokens": " (prompts=learned)"}.items()
        if config.clip[name]
    ]
    if learns and (supervision != "label" or not weight):
        yield f"{learns[0]} needs model.supervision=label and criterion.weights.regions above 0, such as 0.1"
    dense = str(OmegaConf.select(config, "model.head._target_")).endswith(".DenseSettings")
    if learns and dense:
        yield f"{learns[0]}: DenseSettings of model.head have no masks that train it; leave it out"
    if supervision == "text" and config.data.get("unseen") is not None:
        yield "data.unseen: GroupViT learns from captions, not from labels; remove the split"
    if supervision == "text" and config.model.get("head") is not None:
        yield "model.head: GroupViT has none; experiments that set one do not fit method=groupvit"
    if weight and not learns:
        yield (
            f"criterion.weights.regions={weight} trains CLIP or its prompt: set clip.trained=true or "
            "prompts=learned, or it to 0"
        )
    grounded = supervision in ("caption", "words")
    if grounded != (config.grounding is not None):
        way_out = "add model=odise_caption" if grounded else "set grounding=null"
        yield f"model.supervision={supervision} trains {'with' if grounded else 'without'} words: {way_out}"
    own = {"pixels.FeatureCriterion": config.model.get("generator"), "pixels.PixelCriterion": dense}
    own["contrast.ContrastCriterion"] = supervision == "text"
    wanted = next((name for name, fits in own.items() if fits), "criterion.SetCriterion")
    given = config.criterion._target_.removeprefix("odise_pl.losses.")
    if given != wanted and {given, wanted} & own.keys():
        yield (
            f"criterion._target_={config.criterion._target_} does not fit model.supervision, model.head and "
            f"model.generator: set it to odise_pl.losses.{wanted}"
        )
    if supervision == "text" and config.data.words < 1:
        yield f"data.words={config.data.words}: GroupViT learns words of captions; its paper has 3"
    if config.criterion._target_.endswith(".BestMaskCriterion") and supervision not in ("words", "mask"):
        yield f"criterion._target_: BestMaskCriterion learns no classes, which {supervision} needs"


def _missing_logger(config: DictConfig) -> Iterator[str]:
    package = _LOGGERS.get(str(OmegaConf.select(config, "logger._target_")).rpartition(".")[2])
    if package is not None and find_spec(package) is None:
        yield f"logger={package} needs a package that is not installed: pip install {package}"


def _bad_vocabularies(config: DictConfig) -> Iterator[str]:
    for name in ("vocabulary.train", "vocabulary.eval", "captioner.vocabulary"):
        source = OmegaConf.select(config, name)
        for one in source.values() if isinstance(source, DictConfig) else [source]:
            try:
                if one is not None:
                    load_vocabulary(one)
            except UserError as error:
                yield f"{name}: {error}"


def _bad_split(config: DictConfig, *sources: str) -> Iterator[str]:
    for source in sources if config.data.get("unseen") is not None else ():
        with suppress(DataError):  # missing sets are reported elsewhere
            vocabulary = open_shard_set(source).manifest.vocabulary
            try:
                seen_classes(vocabulary, config.data.unseen)
            except VocabularyError as error:
                yield f"data.unseen: {error}; choose the data of the split, or name classes in +data.unseen"


def missing_weights(network: NetworkSettings, paths: Mapping[str, Any]) -> Iterator[str]:
    """Missing files of frozen weights, each with the command that downloads it."""
    model = network.resolved(paths)
    for key, name in network.weights().items():
        path = OmegaConf.select(model, key)
        if not isinstance(name, str):
            yield f"{key}={name} must be text, such as the path of a file"
            continue
        is_file = is_path(name) or (name != "random" and not {"/", ":"} & {*name})
        if is_file and not os.path.exists(path):  # noqa: PTH110 (any text)
            command = _download_command(key, name, paths)
            download = f"get it with: {command}\n    or " if command else ""
            other = f"set {key} to another file"
            other += ", or to random for a trial" if key.endswith(".weights") else ""
            other = "choose another captioner" if key == "captioner.weights" else other
            yield f"{key}={path} does not exist; {download}{other}"
    vectors = OmegaConf.select(model, "classifier.word_vectors") or []
    if isinstance(vectors, str):
        yield f"fusion.word_vectors={vectors}: give a list, [{vectors}]"
        return
    for file in vectors:
        if not os.path.isfile(file):  # noqa: PTH113 (any text)
            yield (
                f"fusion.word_vectors: {file} is no file; give text files, or [] for CLIP's texts (presets: "
                "add _clip_text to their name)"
            )


def _download_command(key: str, weights: str, paths: Mapping[str, Any]) -> str | None:
    """The command in ``conf/`` that downloads a file."""
    part, name = key.partition(".")[0], key.rpartition(".")[2]
    for path in (CONF / part).glob("*.yaml"):
        plain: Any = OmegaConf.to_container(OmegaConf.load(path))
        if plain.get(name) == weights and "source" in plain:
            return OmegaConf.create({"paths": dict(paths), "source": plain["source"]}).source
    return None


def _missing_shards(config: DictConfig, needed: str, *others: str) -> Iterator[str]:
    if config.data[needed] is None:
        yield f"data.{needed} is not set: add data.{needed}=DIR, or choose a data set with data=coco"
    for name in (needed, *others):
        for source in parse_eval_sets(config.data[name]).values():
            try:
                open_shard_set(source)
            except UserError as error:
                yield f"data.{name}: {error}"


def missing_captions(config: DictConfig, names: Sequence[str], captioner: Any = None) -> Iterator[str]:
    """Missing or mixed captions in the shards, if the captioner reads them there."""
    if (captioner or config.captioner).get("on_the_fly", True):
        return
    models = {}
    for name in names:
        for source in parse_eval_sets(config.data[name]).values():
            with suppress(UserError):  # missing sets are reported elsewhere
                captioning = open_shard_set(source).manifest.captioning
                if captioning is None:
                    yield f"data.{name}: {_caption_first(source)}"
                else:
                    models[captioning.model, captioning.sha256, captioning.max_tokens] = source
    if len(models) > 1:
        sets = " and ".join(f"{shards} by {model}" for (model, *_), shards in models.items())
        yield f"data: captions differ in their model or its settings: {sets}"


def _caption_first(shards: str) -> str:
    copy = f"{shards.rstrip('/')}_captioned"
    return (
        f"{shards} has no generated captions for captioner=blip; make a copy with captions: "
        f"odise captions --shards {shards} --out {copy}\n    and use it, or caption every window with "
        "captioner.on_the_fly=true"
    )
