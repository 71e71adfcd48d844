"""Loading the frozen weights of a latent diffusion model.

Weights come from an original single-file checkpoint (LDM names), a diffusers folder or a hub id, or are
``random`` for tests.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, VQModel
from diffusers.loaders import single_file_utils as ldm
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from odise_pl.errors import SettingError
from odise_pl.files import is_path
from odise_pl.models.backbones.stable_diffusion import (
    DiffusionArchitecture,
    DiffusionModels,
    build_diffusion,
    build_unet,
    build_vae,
    class_embedding,
)
from odise_pl.models.frozen import copy_to_memory
from odise_pl.models.weights import (
    WeightsError,
    list_first,
    load_exactly,
    read_checkpoint,
    require_finite,
    tensors_of,
)

_KINDS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "vqvae": VQModel,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
_PARTS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")  # of an original file
_SECOND_TEXT = "conditioner.embedders.1.model."
CLASSES = "class_embedding.safetensors"  # of a class-conditional model, in its diffusers folder


def load_diffusion(
    weights: str,
    architecture: DiffusionArchitecture | None = None,
    mapped: bool = False,
    unet: str | None = None,
) -> DiffusionModels:
    """Build the networks and load their weights.

    Args:
        weights: ``random``; a diffusers folder; an original ``.ckpt`` or ``.safetensors``; or a hub id.
        architecture: SD 1.x by default. Folders and the hub have sizes of their own, but it says which
            networks there are.
        mapped: leave the weights of UNet and VAE in the mapped single file; see
            :func:`~odise_pl.models.build.build_odise`.
        unet: a file with other weights of the UNet, by diffusers' names.

    Raises:
        WeightsError: weights are missing, damaged, or of another architecture.
        SettingError: the libraries build no network of these sizes.
    """
    architecture = architecture or DiffusionArchitecture()
    path = Path(weights)
    try:
        if weights == "random":
            models = build_diffusion(architecture)
        elif path.is_file():
            models = _load_single_file(path, architecture, mapped)
        elif path.is_dir() or not is_path(weights):
            models = _load_folder(weights, architecture, path.is_dir())
        else:
            raise WeightsError(
                f"no weights of a diffusion model at {weights}; give a file, a diffusers folder or a hub id"
            )
    except (ValueError, TypeError, ZeroDivisionError) as error:  # of diffusers and transformers
        raise SettingError(f"backbone.architecture: no network has these sizes: {error}") from error
    _check_fit(models, weights, architecture)
    return models if unet is None else _with_unet(models, unet, mapped)


def _check_fit(models: DiffusionModels, source: str, a: DiffusionArchitecture) -> None:
    """Refuse inpainting models and those of another choice, which load but would fail in the forward pass."""
    unet, vae, pooled = models.unet.config, models.vae.config, models.pooled_text_encoder
    sizes: list[tuple[str, Any, Any]] = []
    if models.classes is not None:
        width = models.classes.embedding_dim
    else:
        text = models.text_encoder.config
        width = text.hidden_size + (pooled.config.hidden_size if pooled else 0)
        sizes.append(("the text encoder's vocabulary", text.vocab_size, a.text_vocabulary))
    sizes += [
        ("the UNet's input channels", unet.in_channels, vae.latent_channels),
        ("the width of the UNet's context", unet.cross_attention_dim, width),
        ("the UNet's added embedding", unet.addition_embed_type, "text_time" if pooled else None),
    ]
    for what, found, wanted in sizes:
        if found != wanted:
            raise WeightsError(
                f"{source}: {what} must be {wanted}, not {found}; use the weights of a text-to-image model "
                "with the backbone= of its family, or set backbone.architecture to matching sizes"
            )


def _load_folder(source: str, a: DiffusionArchitecture, local: bool) -> DiffusionModels:
    """From a diffusers folder or the hub; class embeddings from a file of ours, since diffusers has none."""
    path = Path(source) / CLASSES
    if a.classes and not path.is_file():
        raise WeightsError(
            f"backbone.weights={source}: {CLASSES} is missing, and no hub id has it; give a file, which "
            "odise weights fetch ldm-in1k downloads, or a diffusers folder with it"
        )
    vae = load_network("vqvae" if a.vae_codes else "vae", source, local)
    unet = load_network("unet", source, local)
    if a.classes:
        classes = class_embedding(a)
        load_exactly(classes, tensors_of(read_checkpoint(path)), str(path))
        return DiffusionModels(unet, vae, classes=classes, betas=a.betas)
    text = load_network("text_encoder", source, local)
    pooled = None if a.pooled_text is None else load_network("text_encoder_2", source, local)
    return DiffusionModels(unet, vae, text, pooled, betas=a.betas)


def load_network(name: str, source: str, local: bool = True) -> Any:
    """One network of a diffusers folder or hub repository, converted to float32.

    Args:
        name: ``unet``, ``vae``, ``vqvae``, ``text_encoder`` or ``text_encoder_2``.
        source: the folder of all networks, or a hub id.
        local: do not access the hub.

    Raises:
        WeightsError: weights are missing, damaged, or incomplete (the libraries would only warn).
    """
    kind: Any = _KINDS[name]
    # with its default, diffusers prints advice to install accelerate
    more = {} if name.startswith("text_encoder") else {"low_cpu_mem_usage": False}
    try:
        network, report = kind.from_pretrained(
            source, subfolder=name, local_files_only=local, output_loading_info=True, **more
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{name} lacks {list_first('tensors', missing)}")
    except (OSError, ValueError, RuntimeError) as error:
        where = "folder" if local else "hub id"
        raise WeightsError(f"cannot load a diffusion model from the {where} {source}: {error}") from error
    require_finite(network.state_dict(), f"{source}/{name}")
    copy_to_memory(network.parameters())
    return network.float()


def _load_single_file(path: Path, a: DiffusionArchitecture, mapped: bool) -> DiffusionModels:
    tensors = {
        name.replace("conditioner.embedders.0.", _PARTS[-1]): value  # its name in files of SDXL and later
        for name, value in tensors_of(read_checkpoint(path)).items()
    }
    for prefix in _PARTS:
        if not any(name.startswith(prefix) for name in tensors):
            raise WeightsError(f"{path} is not an original Stable Diffusion checkpoint: {prefix}* is missing")
    require_finite({n: t for n, t in tensors.items() if n.startswith((*_PARTS, _SECOND_TEXT))}, str(path))
    try:
        unet, vae = _convert_image_networks(a, tensors, str(path))
    except KeyError as error:  # of diffusers' conversion
        raise WeightsError(f"{path} does not fit backbone.architecture: {error} is missing") from error
    if not mapped:
        copy_to_memory([*unet.parameters(), *vae.parameters()])
    if a.classes:
        classes, prefix = class_embedding(a), "cond_stage_model.embedding."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        load_exactly(classes, own, str(path))
        return DiffusionModels(unet, vae, classes=classes, betas=a.betas)
    text, pooled = CLIPTextModel(a.text().config()), None
    load_exactly(text, _convert_text(text, tensors), str(path), _TEXT_BUFFERS)
    if a.pooled_text is not None:
        pooled = CLIPTextModelWithProjection(a.pooled_text.config())
        own = ldm.convert_open_clip_checkpoint(pooled, dict(tensors), _SECOND_TEXT)
        load_exactly(pooled, own, str(path), _TEXT_BUFFERS[:2])
    return DiffusionModels(unet, vae, text, pooled, betas=a.betas)


def _convert_image_networks(
    a: DiffusionArchitecture, tensors: dict[str, Tensor], source: str
) -> tuple[UNet2DConditionModel, AutoencoderKL | VQModel]:
    with torch.device("meta"):  # their weights are assigned
        unet, vae = build_unet(a), build_vae(a)
    load_exactly(unet, ldm.convert_ldm_unet_checkpoint(dict(tensors), unet.config), source, assign=True)
    named = ldm.convert_ldm_vae_checkpoint(dict(tensors), vae.config)
    if a.vae_codes:  # which the conversion leaves out
        named["quantize.embedding.weight"] = tensors["first_stage_model.quantize.embedding.weight"]
    load_exactly(vae, named, source, assign=True)
    return unet, vae


_TEXT_BUFFERS = ("embeddings.position_ids", "text_model.embeddings.position_ids", "text_projection.weight")


def _convert_text(model: CLIPTextModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith("cond_stage_model.transformer.text_model") for name in tensors):
        named = ldm.convert_ldm_clip_checkpoint(dict(tensors))
    else:
        named = ldm.convert_open_clip_checkpoint(model, dict(tensors))
    # transformers dropped the "text_model." level in version 5
    nested = any(name.startswith("text_model.") for name in model.state_dict())
    return named if nested else {name.removeprefix("text_model."): value for name, value in named.items()}


def _with_unet(models: DiffusionModels, source: str, mapped: bool) -> DiffusionModels:
    """With the UNet of a file by diffusers' names, or of CleanDIFT's training, and its learned step."""
    tensors = tensors_of(read_checkpoint(source))
    step = tensors.get("timestep")
    prefix = "unet_feature_extractor_cleandift."
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)} or tensors
    require_finite(own, source)
    load_exactly(models.unet, own, source, assign=True)
    if not mapped:
        copy_to_memory(models.unet.parameters())
    return replace(models, learned_step=None if step is None else float(step))
