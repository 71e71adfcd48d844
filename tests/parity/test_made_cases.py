"""The parity command on cases of our own making: other sizes, steps and weights than the records have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm_names import unet_tensors, vae_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from odise_pl.checkpoints.io import load_weights, trainable_names, trainable_state
from odise_pl.checkpoints.official_names import to_official
from odise_pl.models.backbones.clip import CLIPArchitecture, build_clip
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture, build_diffusion
from odise_pl.models.build import (
    BackboneSettings,
    ClipSettings,
    HeadSettings,
    build_odise,
    implicit_captioner,
)
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import ClassifierSettings, Odise, pad_images
from tests.parity.__main__ import main
from tests.parity.models import deciding
from tests.parity.records import Case
from tests.parity.training import TERMS, Training, official_parameters, step

DIFFUSION = DiffusionArchitecture(
    unet_channels=(32, 32, 64, 64),
    heads=8,
    context_dim=32,
    vae_channels=(32, 32, 64, 64),
    text_width=32,
    text_mlp=48,
    text_layers=1,
    text_heads=2,
)
CLIP = CLIPArchitecture(
    image_size=42,
    vision_width=64,
    vision_layers=1,
    text_width=64,
    text_layers=1,
    text_heads=1,
    embed_dim=32,
)
HEAD = HeadSettings(
    channels=32,
    mask_channels=32,
    embed_dim=32,
    pixel_feedforward=40,
    pixel_layers=1,
    queries=7,
    layers=2,
    heads=4,
    feedforward=48,
)
LABELS = [["person", "man"], ["dog"], ["sky"], ["grass", "lawn"]]
STEPS = [30, 400]


def network(folder: Path, learnable_time: bool = True, supervision: str = "label") -> Odise:
    return build_odise(
        BackboneSettings(
            str(folder / "sd.safetensors"), DIFFUSION, STEPS, input_size=64, window=64, channels=128
        ),
        ClipSettings(str(folder / "clip.safetensors"), architecture=CLIP),
        implicit_captioner(learnable_time),
        HEAD,
        ClassifierSettings(),
        InferenceSettings(),
        supervision,
        published_quirks=True,
    ).eval()


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def write_weights(folder: Path, supervision: str = "label") -> Odise:
    """All three files; returns the network that they make."""
    torch.manual_seed(0)
    models = build_diffusion(DIFFUSION)
    text = {n.removeprefix("text_model."): t for n, t in models.text_encoder.state_dict().items()}
    named = {f"cond_stage_model.transformer.text_model.{n}": t for n, t in text.items()}
    tensors = unet_tensors(models.unet) | vae_tensors(models.vae) | named
    save_file(contiguous(tensors), folder / "sd.safetensors")
    save_file(contiguous(build_clip(CLIP).state_dict()), folder / "clip.safetensors")
    model = network(folder, supervision=supervision)
    with torch.no_grad():
        for name in sorted(trainable_names(model)):
            parameter = model.get_parameter(name)
            parameter += 0.1 * torch.randn(parameter.shape)
    state = {to_official(n, supervision): t for n, t in trainable_state(model).items()}
    torch.save({"model": state, "iteration": 3}, folder / "official.pth")
    return model


@torch.no_grad()
def write_case(model: Odise, folder: Path, name: str, learnable_time: bool = True) -> None:
    """What a recording of the network would hold of an evaluation."""
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((70, 100), (90, 61))]
    canvas, sizes = pad_images([image.float() / 255 for image in images])
    pyramid = model.backbone(canvas)
    features = model.pixel_decoder(pyramid)
    last = model.mask_decoder(features)[-1]
    tensors = {f"inputs/{i}/image": image for i, image in enumerate(images)}
    tensors |= {f"rec/backbone.forward/0/out/s{i + 2}": level for i, level in enumerate(pyramid)}
    tensors |= {f"rec/pixel_decoder/0/multi_scale_features/{i}": x for i, x in enumerate(features.levels)}
    tensors |= {
        "rec/pixel_decoder/0/mask_features": features.mask_features,
        "rec/predictor/0/pred_masks": last.mask_logits,
        "rec/predictor/0/mask_embed": last.mask_embed,
        "rec/predictor/0/logit_scale": last.logit_scale,
        "rec/clip_head.get_mask_embed/0/mask_embed": model._clip_mask_embeddings(
            last.mask_logits, canvas, sizes
        ),
    }
    save_file(contiguous(tensors), folder / f"{name}.safetensors")
    facts: dict[str, Any] = {
        "model": "label",
        "weights": "official.pth",
        "steps": STEPS,
        "learnable_time_embed": learnable_time,
        "backbone_in_size": [64, 64],
        "test_labels": LABELS,
        "train_labels": LABELS[1:3],
        "thing_ids": [0, 1],
        "topk": 5,
    }
    (folder / f"{name}.json").write_text(json.dumps(facts))


def write_training(model: Odise, folder: Path, name: str, annotated: int | None = 0, /, **more: Any) -> None:
    """What a recording of the network would hold of a training step, where one image at most has objects."""
    tensors = {f"inputs/{i}/image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for i in range(2)}
    if annotated is not None:
        masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
        masks[0, :30], masks[1, 30:, 40:] = 1, 1
        tensors[f"inputs/{annotated}/gt_masks"] = masks
        tensors[f"inputs/{annotated}/gt_classes"] = torch.tensor([2, 0])
        tensors |= {f"points_{kind}": torch.rand(1, 200, 2) for kind in ("matcher", "criterion")}
    facts: dict[str, Any] = {
        "model": "label", "weights": "official.pth", "steps": STEPS, "backbone_in_size": [64, 64],
        "train_labels": LABELS, **more,
    }  # fmt: skip
    run = Training(Case(name, folder, facts, tensors), model)
    _, losses = step(run)
    facts |= {f"losses/{loss}": float(value.detach()) for loss, value in losses.terms.items()}
    own = official_parameters(model, facts["model"])
    assert all(p.grad is not None for p in own.values())
    tensors |= {f"grads/{n}": p.grad.clone() for n, p in own.items() if p.grad is not None}
    model.zero_grad()
    save_file(contiguous(tensors), folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(2)
    model = write_weights(folder)
    model.mask_decoder = deciding(HEAD, "label")
    load_weights(model, folder / "official.pth")
    write_training(model, folder, "held_x")
    return folder


def test_a_training_step_with_an_image_without_objects_agrees(trained: Path) -> None:
    facts = json.loads((trained / "held_x.json").read_text())
    assert all(facts[f"losses/{name}"] > 0 for name in TERMS)
    assert main([str(trained)]) == 0


@pytest.mark.parametrize("annotated", [None, 1])
def test_captions_alone_train_if_the_first_image_has_no_annotations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], annotated: int | None
) -> None:
    model = write_weights(tmp_path, "caption")
    model.mask_decoder = deciding(HEAD, "caption")
    load_weights(model, tmp_path / "official.pth")
    words = [["dog", "grass"], ["red car"]]
    write_training(model, tmp_path, "held_x", annotated, model="caption", words=words)
    facts = json.loads((tmp_path / "held_x.json").read_text())
    assert [facts[f"losses/{name}"] for name in TERMS] == [0, 0, 0]
    assert facts["losses/loss_mask_word"] > 0
    held = load_file(tmp_path / "held_x.safetensors")
    assert not held["grads/sem_seg_head.predictor.class_embed.weight"].any()
    assert main([str(tmp_path)]) == 0
    facts["losses/loss_ce"] = 0.1
    (tmp_path / "held_x.json").write_text(json.dumps(facts))
    assert main([str(tmp_path)]) == 1
    assert "loss_ce" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "backbone.feature_projections.3.0.conv2.weight",  # before a ReLU
        "backbone.feature_extractor.alpha_cond",
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.sampling_offsets.bias",
        "sem_seg_head.predictor.transformer_ffn_layers.1.linear1.bias",
        "category_head.text_proj.weight",
    ],
)
@pytest.mark.parametrize(("stage", "change"), [
    ("gradients: norms", lambda x: 1.01 * x),
    ("gradients: directions", lambda x: x + 0.05 * x.norm() * turned(x)),
])  # fmt: skip
def test_an_error_in_one_gradient_is_found(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    stage: str,
    change: Callable[[Tensor], Tensor],
) -> None:
    def alter(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        tensors[f"grads/{name}"] = change(tensors[f"grads/{name}"])

    assert main([str(changed(trained, tmp_path, alter))]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "NOT OK" in line]
    assert stage in line
    assert name in line


def turned(x: Tensor) -> Tensor:
    """A direction of length 1 that is perpendicular to a gradient."""
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    other -= (other * x).sum() / x.square().sum() * x
    return other / other.norm()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(1)
    write_case(write_weights(folder), folder, "held_x")
    return folder


def test_the_network_is_read_off_the_files_and_agrees(
    cases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(cases)]) == 0
    lines = capsys.readouterr().out.splitlines()
    stages = {line[line.index("held_x") + 6 :].strip().split("  ")[0] for line in lines if "held_x" in line}
    assert stages >= {
        "pixel decoder (recorded pyramid): mask features",
        "mask decoder (recorded features): masks",
        "masked CLIP (recorded masks)",
        "end to end: pyramid",
        "end to end: masks",
        "end to end: mask embeddings",
    }
    assert lines[-1].endswith(" s")
    assert " 0 not ok" in lines[-1]


def changed(cases: Path, folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
    """The case with something else in it."""
    for path in cases.iterdir():
        if not path.stem.startswith("held_x"):
            (folder / path.name).symlink_to(path)
    tensors = load_file(cases / "held_x.safetensors")
    facts = json.loads((cases / "held_x.json").read_text())
    change(tensors, facts)
    save_file(tensors, folder / "held_x.safetensors")
    (folder / "held_x.json").write_text(json.dumps(facts))
    return folder


def shift(name: str, by: float) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        tensors[name] = tensors[name] + by * tensors[name].abs().max()

    return change


def test_whatever_else_is_not_recorded_the_rest_is_checked(cases: Path, tmp_path: Path) -> None:
    names = [name for name in load_file(cases / "held_x.safetensors") if not name.startswith("inputs/")]
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert main([str(changed(cases, folder, lambda tensors, facts, name=name: tensors.pop(name)))]) == 0


def test_a_network_without_a_learned_time_takes_its_part_of_the_weights(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, learned = network(cases, learnable_time=False), trainable_state(network(cases))
    data = torch.load(cases / "official.pth", weights_only=True)["model"]
    state = {n: data[to_official(n, "label")] for n in learned if n in trainable_names(model)}
    model.load_state_dict(state, strict=False)
    for name in ("sd.safetensors", "clip.safetensors", "official.pth"):
        (tmp_path / name).symlink_to(cases / name)
    write_case(model, tmp_path, "held_x", learnable_time=False)
    assert main([str(tmp_path)]) == 0
    (tmp_path / "held_x.json").write_text(
        (tmp_path / "held_x.json").read_text().replace('"learnable_time_embed": false', '"x": 0')
    )
    assert main([str(tmp_path)]) == 1
    assert "NOT OK" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("rec/backbone.forward/0/out/s3", "end to end: pyramid"),
        ("rec/predictor/0/pred_masks", "end to end: masks"),
        ("rec/clip_head.get_mask_embed/0/mask_embed", "masked CLIP (recorded masks)"),
    ],
)
def test_a_record_that_differs_is_found_at_its_stage(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, stage: str
) -> None:
    assert main([str(changed(cases, tmp_path, shift(name, 2e-3)))]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if stage in line]
    assert "NOT OK" in line


def test_other_weights_are_found(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(cases, tmp_path, lambda tensors, facts: facts.pop("weights"))
    data = torch.load(cases / "official.pth", weights_only=True)
    name = "sem_seg_head.pixel_decoder.mask_features.weight"
    data["model"][name] = data["model"][name] * 1.01
    torch.save(data, tmp_path / "other.pth")
    assert main([str(folder), "--weights", str(tmp_path / "other.pth")]) == 1
    assert "NOT OK" in capsys.readouterr().out
    assert main([str(folder), "--weights", str(cases / "official.pth")]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, f: f.pop("weights"), "names no weights; name the file with --weights FILE"),
        (lambda t, f: f.update(weights="gone.pth"), "gone.pth are not in"),
        (lambda t, f: f.update(weights="../official.pth"), "weights '../official.pth' is not the name"),
        (lambda t, f: f.update(weights="/official.pth"), "weights '/official.pth' is not the name"),
        (lambda t, f: f.update(weights=["official.pth"]), "weights ['official.pth'] is not the name"),
        (lambda t, f: f.update(model="neither"), "model 'neither' is neither label nor caption"),
        (lambda t, f: f.update(model="caption"), "does not fit this model"),
        (lambda t, f: f.update(steps=[0]), "does not fit this model"),
        (lambda t, f: f.update(backbone_in_size=[64, 128]), "is not square"),
        (lambda t, f: f.pop("test_labels"), "its JSON has no 'test_labels'"),
    ],
)
def test_a_case_that_cannot_be_checked_says_why(
    cases: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Tensor], dict[str, Any]], None],
    message: str,
) -> None:
    assert main([str(changed(cases, tmp_path, change))]) == 2
    assert message in capsys.readouterr().err
