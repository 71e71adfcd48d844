from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny_models
import tiny_timm
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from odise_pl.errors import SettingError, UserError
from odise_pl.models.backbones.contract import Tap
from odise_pl.models.backbones.feature_backbone import FeatureBackbone
from odise_pl.models.backbones.pyramid import STRIDES, FeaturePyramid, SimplePyramid
from odise_pl.models.backbones.timm_features import TimmFeatures
from odise_pl.models.build import TimmSettings, empty_captioner
from odise_pl.models.weights import WeightsError
from odise_pl.runs.conf import CONF, compose_config

# millions of parameters without head, at the size of the weights
SIZES = {
    "beitv2_l": 303.4, "clip_h": 630.8, "clip_l": 303.2, "convnext_l_clip": 196.2, "convnext_v2_h": 657.5,
    "convnext_xl": 348.1, "deit3_h": 630.8, "dino_b": 85.8, "dinov2_l": 304.4, "dinov3_convnext_l": 196.2,
    "dinov3_l": 303.1, "mae_h": 630.8, "moco_v3_l": 303.3, "mvit_h": 665.3, "radio_v3_l": 304.2,
    "radio_v4_h": 632.0, "resnet101": 42.5, "resnet101c": 42.52, "resnet50": 23.51, "siglip2_l": 304.1,
    "swin_h": 655.2, "swin_l": 195.2, "timm": 5.52, "toy_clip": 0.8509, "toy_dino": 0.8511,
    "toy_mae": 0.8511, "toy_supervised_conv": 1.9, "toy_supervised_vit": 0.8511, "vit_l16_384": 303.69,
}  # fmt: skip


@cache
def chosen(name: str) -> DictConfig:
    return compose_config("train", ["run=x", "run_dir=.", f"backbone={name}"])


def settings(name: str, **changes: Any) -> TimmSettings:
    found: TimmSettings = replace(instantiate(chosen(name).backbone), **{"weights": "random"} | changes)
    return found


def small(family: str = "vit", **changes: Any) -> TimmSettings:
    model, options = tiny_timm.FAMILIES[family]
    return TimmSettings(model, options=options, channels=128, **{"input_size": 96} | changes)


def features(of: TimmSettings) -> TimmFeatures:
    torch.manual_seed(0)
    found, condition = of.load()
    assert condition is None
    assert isinstance(found, TimmFeatures)
    return found


def millions(of: TimmFeatures) -> float:
    return sum(p.numel() for p in of.parameters()) / 1e6


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_every_choice_of_timm_has_a_known_size() -> None:
    files = CONF.glob("backbone/*.yaml")
    named = {path.stem for path in files if "\nmodel: " in path.read_text()}  # timm's name
    assert named == SIZES.keys()


OFTEN = ("timm", "dinov3_l", "swin_h", "convnext_l_clip", "resnet50")  # the others are slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in SIZES]
)
def test_choice_builds_at_full_size(name: str) -> None:
    """On the meta device: shapes without memory."""
    config, own = chosen(name), settings(name)
    assert config.captioner["_target_"].endswith("none_captioner")
    with torch.device("meta"):
        found = features(own)
        counted = found
        if millions(found) != pytest.approx(SIZES[name], rel=1e-3):  # positions of another size
            counted = features(
                replace(own, input_size=timm.get_pretrained_cfg_value(own.model, "input_size")[-1])
            )
    assert millions(counted) == pytest.approx(SIZES[name], rel=1e-3)
    assert {tap.stride for tap in found.taps} == set(STRIDES)
    assert own.input_size % found.input_multiple == 0
    sharded = sum(p.numel() for block in found.blocks() for p in block.parameters())
    assert (
        sharded > 0.9 * sum(p.numel() for p in found.parameters()) or "resnet" in own.model
    )  # no lists of blocks


@pytest.mark.parametrize("name", SIZES)
def test_small_member_of_every_choice_loads_a_file_for_another_size(name: str, tmp_path: Path) -> None:
    """Weights of timm's native size, with their head, at a size that timm has to resample them to."""
    own = settings(name)
    model, options = tiny_timm.shrink(own.model)
    options = {**own.options, **options}
    torch.manual_seed(0)
    native = timm.create_model(model, **options)
    tiny_models.stir(native)
    save_file({n: t.clone() for n, t in native.state_dict().items()}, tmp_path / "native.safetensors")
    size = 98 if own.input_size == 448 else 96
    changes = {"model": model, "options": options, "input_size": size}
    found = features(replace(own, weights=str(tmp_path / "native.safetensors"), **changes))
    held = dict(native.named_parameters())
    inner = [(n, p) for n, p in found.model.named_parameters() if "blocks." in n or n.startswith("layer")]
    blocks = {n: p for n, p in inner if held[n].shape == p.shape}
    assert len(blocks) > 20
    assert all(torch.equal(p, held[n]) for n, p in blocks.items())
    maps = found(images(size))
    assert len(maps) == len(found.taps)
    for one, tap in zip(maps, found.taps, strict=True):
        assert one.shape[:2] == (2, tap.channels)
        assert one.is_contiguous()
        assert one.isfinite().all()
    backbone = FeatureBackbone(found, None, FeaturePyramid(found.taps, 128), size, 64)
    for level, stride in zip(backbone(images(128)), STRIDES, strict=True):
        assert level.shape == (2, 128, 128 // stride, 128 // stride)
        assert level.isfinite().all()


def test_maps_equal_those_of_timm() -> None:
    """Normalised by the model's own statistics, with the final norm, without prefix tokens."""
    found = features(small("eva"))
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_dinov3.lvd1689m", img_size=96, **tiny_timm.VIT).eval()
    x = images(96)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        tokens = model.forward_features((x - mean) / std)  # the last block's, normed
        last = tokens[:, model.num_prefix_tokens :].mT.unflatten(2, (6, 6))
        torch.testing.assert_close(found(x)[-1], last)
        raw = features(small("eva", final_norm=False))(x)[-1]
    assert not torch.allclose(raw, last, atol=1e-2)


def test_blocks_of_depth() -> None:
    expected = {12: [2, 5, 8, 11], 24: [5, 11, 17, 23], 27: [6, 13, 20, 26], 32: [7, 15, 23, 31]}
    for depth, blocks in expected.items():
        options = {"depth": depth, "embed_dim": 8, "num_heads": 1}
        found = features(replace(small(), options=options))
        assert [tap.name for tap in found.taps] == [f"block.{i}" for i in blocks]
        assert [tap.stride for tap in found.taps] == list(STRIDES)
    one = features(small(pyramid="simple", taps=[1]))
    assert [tap.name for tap in one.taps] == ["block.1"]
    shallow = features(replace(small(pyramid="simple"), options={**tiny_timm.VIT, "depth": 2}))
    assert [tap.name for tap in shallow.taps] == ["block.1"]
    taken = features(replace(small(), options={**tiny_timm.VIT, "depth": 8}, taps=[1, 0, 3, 2]))
    assert [tap.name for tap in taken.taps] == [f"block.{i}" for i in range(4)]
    assert len(list(taken.blocks())) == 4  # the others are gone
    twins = features(TimmSettings("twins_svt_small", options={"depths": [1, 2, 1, 1]}, input_size=64))
    kinds = {type(block).__name__ for block in twins.blocks()}
    assert kinds == {"Block"}
    assert len(list(twins.blocks())) == 5


def test_shrinking_maps_average_cells_of_transformers_only() -> None:
    cells = torch.arange(16.0).view(1, 1, 4, 4)
    found = {}
    assert SimplePyramid(Tap("last", 16, 16), 128).pooled == [True] * 4
    for pooled in (True, False):
        pyramid = FeaturePyramid([Tap(str(s), 1, s, pooled) for s in STRIDES], 128)
        seen: list[Tensor] = []
        pyramid.projections[3].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        pyramid([cells] * 4, (64, 64))
        found[pooled] = seen[0].flatten().tolist()
    assert found == {True: [2.5, 4.5, 10.5, 12.5], False: [0.0, 2.0, 8.0, 10.0]}


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_simple_pyramid_is_trained_on_the_last_map(patch: int) -> None:
    size = 6 * patch
    of = small(pyramid="simple", input_size=size)
    of = replace(of, options={**of.options, "patch_size": patch})
    found = features(of)
    assert [(tap.name, tap.stride) for tap in found.taps] == [("block.3", patch)]
    pyramid = of.projections(found)
    levels = pyramid(found(images(size)), (64, 64))
    assert [x.shape for x in levels] == [(2, 128, 64 // s, 64 // s) for s in STRIDES]
    sum(x.square().mean() for x in levels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pyramid.scales.parameters())
    with pytest.raises(SettingError, match=r"backbone\.pyramid=simple"):
        small("swin", pyramid="simple").build(tiny_models.clip(), None)


def test_no_activations_are_kept() -> None:
    torch.manual_seed(0)
    backbone = small().build(tiny_models.clip(), None).train()
    assert not any(p.requires_grad for p in backbone.features.parameters())
    kept: list[Any] = []
    backbone.features.register_forward_hook(lambda _, args, out: kept.extend(out))
    backbone(images(64))[0].sum().backward()
    assert len(kept) == 4
    assert not any(x.requires_grad for x in kept)
    assert not backbone.features.model.training


def test_captioner_has_to_fit() -> None:
    with pytest.raises(SettingError, match=r"captioner=none"):
        small().build(tiny_models.clip(), empty_captioner())
    with pytest.raises(SettingError, match=r"captioner=empty"):
        tiny_models.odise(captioner=None)


Wrap = Callable[[dict[str, Tensor]], dict[str, Any]]


def moco(own: dict[str, Tensor]) -> dict[str, Any]:
    """As MoCo-v3 saves: twice, with a projector as head."""
    kept = {f"module.{kind}_encoder.{n}": t for kind in ("base", "momentum") for n, t in own.items()}
    return {"state_dict": {**kept, "module.base_encoder.head.0.weight": torch.ones(2, 2)}, "arch": "vit"}


def simmim(own: dict[str, Tensor]) -> dict[str, Any]:
    """As SimMIM saves: an encoder with a token for masks, and a decoder; a stage begins a layer later."""
    moved = {
        re.sub(r"layers\.(\d)\.down", lambda at: f"layers.{int(at[1]) - 1}.down", n).replace(
            "cpb_", "rpe_"
        ): t
        for n, t in own.items()
    }
    extra = {"encoder.mask_token": torch.ones(1), "decoder.0.weight": torch.ones(1)}
    return {"model": {**{f"encoder.{n}": t for n, t in moved.items()}, **extra}, "epoch": 1}


@pytest.mark.parametrize(("name", "wrap"), [("moco_v3_l", moco), ("swin_h", simmim)])
def test_official_files_of_self_supervised_training(name: str, wrap: Wrap, tmp_path: Path) -> None:
    own = settings(name)
    model, options = tiny_timm.shrink(own.model)
    options = {**own.options, **options}
    torch.manual_seed(0)
    network = tiny_models.stir(timm.create_model(model, **options, num_classes=0))
    torch.save(wrap(dict(network.state_dict())), tmp_path / "official.pth")
    changes = {"model": model, "options": options, "input_size": 96}
    found = features(replace(own, weights=str(tmp_path / "official.pth"), **changes))
    held = dict(network.named_parameters())
    same = [torch.equal(p, held[n]) for n, p in found.model.named_parameters() if p.shape == held[n].shape]
    assert len(same) > 50
    assert all(same)


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": "vit_of_nobody"}, r"backbone\.model=vit_of_nobody.*pip install"),
    ({"model": "hf-hub:someone/vit_tiny_patch16_224"}, r"backbone\.model=hf-hub:someone"),
    ({"weights": "hf-hub:timm/vit_tiny_patch16_224"}, "hf-hub:timm/vit.*OWNER/NAME"),
    ({"model": "vit_tiny_patch16_224.nobody"}, r"backbone\.model=.*nobody"),
    ({"model": "vit_tiny_patch16_224.nobody", "weights": "timm/vit_tiny"}, r"backbone\.model=.*nobody"),
    ({"model": "vit_tiny_patch16_224", "options": {"depht": 2}}, "depht"),
    ({"options": {"checkpoint_path": "x.pth"}}, r"backbone\.options\.checkpoint_path=x\.pth"),
    ({"options": {"pretrained_cfg_overlay": {"file": "x"}}}, r"backbone\.options\.pretrained_cfg_overlay"),
    ({"options": {**tiny_timm.VIT, "in_chans": 4}}, r"3 x 96 x 96 pixels; check backbone\.options"),
    ({"options": {**tiny_timm.VIT, "img_size": 64}}, r"3 x 96 x 96 pixels; check backbone\.options"),
    ({"model": "samvit_base_patch16.sa1b"}, r"samvit.*set backbone\.final_norm=false"),
    ({"pyramid": "deep"}, r"backbone\.pyramid=deep.*depths, simple"),
    ({"options": {**tiny_timm.VIT, "depth": 2}}, r"has 2 blocks; backbone\.pyramid=depths needs four"),
    ({"taps": [0, 1, 2]}, r"backbone\.taps=\[0, 1, 2\].*0\.\.3"),
    ({"taps": [0, 1, 2, 4]}, r"backbone\.taps=\[0, 1, 2, 4\].*0\.\.3"),
    ({"taps": [0, 1, 2, "a"]}, r"backbone\.taps=\[0, 1, 2, 'a'\]"),
    ({"taps": [0.5, 1, 2, 3]}, r"backbone\.taps=\[0\.5, 1, 2, 3\]"),
    ({"taps": [0, 1, 2, 3, 3]}, r"backbone\.taps=\[0, 1, 2, 3, 3\]: give four"),
    ({"pyramid": "simple", "taps": [0, 1]}, r"backbone\.taps=\[0, 1\]: give one block in 0\.\.3"),
    ({"final_norm": "no"}, r"backbone\.final_norm=no: choose true or false"),
    ({"model": None}, r"backbone\.model=None"),
    ({"window_batch": "eight"}, r"backbone\.window_batch=eight must be an integer"),
    ({"options": {**tiny_timm.VIT, "depth": 0}}, r"backbone\.options: .* no blocks"),
    ({"taps": 5}, r"backbone\.taps=5"),
    ({"taps": "abc"}, r"backbone\.taps=abc"),
    ({"options": 4}, r"backbone\.options=4"),
    ({"options": None}, r"backbone\.options=None"),
    ({"weights": None}, r"backbone\.weights=None"),
    ({"input_size": None}, r"backbone\.input_size=None must be an integer"),
    ({"input_size": "abc"}, r"backbone\.input_size=abc must be an integer"),
    ({"input_size": 100}, r"backbone\.input_size=100 .* 16, such as 96"),
    ({"weights": "nowhere.safetensors"}, r"not found: nowhere\.safetensors"),
    ({"weights": "some/where/nowhere"}, r"not found: some/where/nowhere"),
    ({"weights": "timm/vit_tiny_patch16_224.augreg_in21k"}, r"timm/vit_tiny.*HF_HUB_OFFLINE"),
])  # fmt: skip
def test_invalid_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(small(), **changes).build(tiny_models.clip(), None)


@pytest.mark.parametrize(("raised", "reason"), [
    (KeyError("norm.weight"), r"names are of another network \('norm\.weight' is missing\)"),
    (AssertionError(), "AssertionError"),
])  # fmt: skip
def test_reasons_of_timm_are_sentences(
    raised: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(TimmSettings, "create", fail)
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=reason):
        small(weights=str(tmp_path / "other.pth")).load()


@pytest.mark.parametrize("damage", ["missing", "unexpected", "of another shape", "of another model", "none"])
def test_wrong_weights_end_in_one_message(damage: str, tmp_path: Path) -> None:
    model, options = tiny_timm.FAMILIES["vit"]
    other = {**options, "embed_dim": 48} if damage == "of another shape" else options
    other_model = "swin_tiny_patch4_window7_224.ms_in1k" if damage == "of another model" else model
    state = dict(
        timm.create_model(other_model, **(tiny_timm.STAGES if "swin" in other_model else other)).state_dict()
    )
    if damage == "missing":
        del state["blocks.2.attn.qkv.weight"]
    if damage == "unexpected":
        state["blocks.9.attn.qkv.weight"] = torch.ones(2)
    state = {"teacher": {}} if damage == "none" else state
    named = {
        "missing": r"1 missing \(blocks\.2\.attn\.qkv\.weight\); choose the backbone\.model",
        "unexpected": r"1 unexpected \(blocks\.9\.attn\.qkv\.weight\)",
        "of another shape": r"of another shape \(cls_token: \[1, 1, 48\] in the file, \[1, 1, 32\]",
        "of another model": r"missing \(.*unexpected \(",
        "none": r"no tensors .* only teacher;",
    }
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(WeightsError, match=rf"wrong\.pth.* {named[damage]}") as error:
        small(weights=str(tmp_path / "wrong.pth")).load()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_files_without_a_classifier_load_when_told(family: str, tmp_path: Path) -> None:
    model, options = tiny_timm.FAMILIES[family]
    torch.save(timm.create_model(model, **options, num_classes=0).state_dict(), tmp_path / "bare.pth")
    own = small(family, weights=str(tmp_path / "bare.pth"))
    with pytest.raises(WeightsError, match=r"bare\.pth.*\+\+backbone\.options\.num_classes=0"):
        own.load()
    features(replace(own, options={**options, "num_classes": 0}))


def test_timm_copies_weights_only_into_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = tiny_timm.FAMILIES["vit"]
    torch.save(timm.create_model(model, **options).state_dict(), tmp_path / "own.pth")
    monkeypatch.delattr(Tensor, "__deepcopy__")
    monkeypatch.delattr(Tensor, "__reduce_ex__")
    found = features(small(weights=str(tmp_path / "own.pth")))
    assert {type(tensor) for tensor in found.state_dict().values()} == {Tensor}


def test_official_files_may_hold_settings_of_their_training(tmp_path: Path) -> None:
    model, options = tiny_timm.FAMILIES["vit"]
    state = timm.create_model(model, **options).state_dict()
    torch.save({"model": dict(state), "args": Namespace(lr=1)}, tmp_path / "official.pth")
    features(small(weights=str(tmp_path / "official.pth")))
