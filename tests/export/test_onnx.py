from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_models
import tiny_timm
import torch
from PIL import Image
from torch import nn

from odise_pl.data.transforms import EvalResize, image_tensor, pixel_tensor
from odise_pl.errors import SettingError
from odise_pl.export.graph import NetworkGraph, text_inputs
from odise_pl.export.onnx import export, export_embeddings, export_network
from odise_pl.models.backbones.captioners import TextCaptioner
from odise_pl.models.build import (
    BackboneSettings,
    ClipSettings,
    DenseSettings,
    TimmSettings,
    build_odise,
    implicit_captioner,
)
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.classifiers.generator import GeneratorSettings
from odise_pl.models.classifiers.refinement import RefinementSettings
from odise_pl.models.inference import InferenceSettings, resize_masks
from odise_pl.models.inference import panoptic as torch_panoptic
from odise_pl.models.network import SegmentationNetwork
from odise_pl.models.odise import Odise
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.vocabulary import load_vocabulary

SCRIPT = Path(__file__).parents[2] / "scripts" / "onnx_inference.py"
WORDS = ["dog,puppy", "cat", "grass,lawn,meadow:stuff", "sky:stuff"]
OTHER_WORDS = ["boat", "sea,water:stuff", "sand:stuff"]
TRAINED = load_vocabulary(["cat", "grass:stuff"])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnx_inference", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_segmenter() -> Segmenter:
    """Of a random network with windows of 128 pixels and few layers, because each takes time to export."""
    torch.manual_seed(3)
    model = build_odise(
        BackboneSettings(architecture=tiny_models.SD1, input_size=128, window=128, channels=128),
        ClipSettings(architecture=replace(tiny_models.CLIP, vision_layers=1)),
        implicit_captioner(),
        replace(tiny_models.HEAD, layers=1),
        ClassifierSettings(),
        InferenceSettings(overlap_threshold=0.1),
    ).eval()
    tiny_models.stir(model, size=0.05)
    with torch.no_grad():
        model.text_projection.null_embed.neg_()  # else no query would be an object
    return Segmenter(model, TRAINED, EvalResize(128, 256))


def picture(height: int, width: int) -> Image.Image:
    """Coloured blocks."""
    blocks = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole network with two windows and embeddings as input; takes a minute."""
    out = tmp_path_factory.mktemp("onnx") / "net.onnx"
    assert export_network(tiny_segmenter(), out, (128, 256)) == [out]
    return out


def words_file(folder: Path, words: list[str]) -> dict[str, Any]:
    return dict(np.load(export_embeddings(tiny_segmenter(), folder / "words.npz", words)))


@pytest.mark.slow
@pytest.mark.parametrize("words", [WORDS, OTHER_WORDS], ids=["words", "other_words"])
def test_network_equals_pytorch(script: ModuleType, network: Path, tmp_path: Path, words: list[str]) -> None:
    segmenter, image, arrays = tiny_segmenter(), picture(128, 256), words_file(tmp_path, words)
    session = onnxruntime.InferenceSession(network)
    inputs = arrays | {"image": script.network_input(image, 128, 256)}
    found = session.run(None, {each.name: inputs[each.name] for each in session.get_inputs()})
    classes = segmenter.model.prepare(load_vocabulary(words), TRAINED)
    with torch.no_grad():
        tensor = image_tensor(pixel_tensor(image))[None]
        expected = NetworkGraph(segmenter.model, (128, 256), classes, head_only=False)((tensor,), ())
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-3)
    ids, segments, names = script.segment(session, image, arrays)
    result = segmenter(image, words)
    assert np.mean(ids != result.ids) < 1e-2  # queries of a random network have nearly the same scores
    assert [names[label] for _, label, _ in segments] == [s.name for s in result.segments]
    assert segments


@pytest.mark.slow
def test_example_runs_without_torch(network: Path, tmp_path: Path) -> None:
    picture(96, 160).save(tmp_path / "photo.png")
    words_file(tmp_path, WORDS)
    code = (
        "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'odise_pl']); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, SCRIPT, network, tmp_path / "photo.png"]
    command += ["--embeddings", tmp_path / "words.npz", "--out", tmp_path / "segments.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pixels" in done.stdout
    assert Image.open(tmp_path / "segments.png").size == (160, 96)
    done = subprocess.run(command[:-4], capture_output=True, text=True, check=False)
    assert "--embeddings" in done.stderr


@pytest.mark.slow
def test_head_equals_pytorch(tmp_path: Path) -> None:
    segmenter, out = tiny_segmenter(), tmp_path / "head.onnx"
    export_network(segmenter, out, (64, 128), head_only=True)
    session = onnxruntime.InferenceSession(out)
    assert json.loads(session.get_modelmeta().custom_metadata_map["overlap_threshold"]) == 0.1
    generator = torch.Generator().manual_seed(0)
    pyramid = [torch.randn(1, 128, 64 // s, 128 // s, generator=generator) for s in (4, 8, 16, 32)]
    graph = NetworkGraph(segmenter.model, (64, 128), None, head_only=True)
    for words in (WORDS, OTHER_WORDS):
        inputs = words_file(tmp_path, words)
        assert list(inputs["names"]) == list(load_vocabulary(words).names)
        inputs |= {f"s{i}": level.numpy() for i, level in enumerate(pyramid, 2)}
        found = session.run(None, {each.name: inputs[each.name] for each in session.get_inputs()})
        classes = segmenter.model.prepare(load_vocabulary(words), TRAINED)
        with torch.no_grad():
            expected = graph(tuple(pyramid), text_inputs(classes))
        assert found[0].shape == (10, len(words) + 1)
        for ours, theirs in zip(expected, found, strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-3)


@pytest.mark.slow
def test_words_become_constants(tmp_path: Path) -> None:
    export_network(tiny_segmenter(), tmp_path / "head.onnx", (64, 64), WORDS, head_only=True)
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx")
    assert [each.name for each in session.get_inputs()] == ["s2", "s3", "s4", "s5"]
    assert session.get_outputs()[0].shape == [10, len(WORDS) + 1]
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["names"] == ["dog", "cat", "grass", "sky"]
    assert metadata["isthing"] == [True, True, False, False]


@pytest.mark.parametrize("size", [(64, 96), (150, 101)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.8])
def test_example_merges_as_pytorch(script: ModuleType, size: tuple[int, int], overlap: float) -> None:
    generator = torch.Generator().manual_seed(1)
    isthing = [True, False, True, False]
    scores = (3 * torch.randn(20, 5, generator=generator)).softmax(-1)
    coarse = 6 * torch.randn(20, 1, 4, 6, generator=generator)
    masks = nn.functional.interpolate(coarse, (16, 24), mode="bicubic")[:, 0]
    settings = InferenceSettings(object_threshold=0.4, overlap_threshold=overlap)
    full = resize_masks(masks, (64, 96), (64, 96), size)
    expected = torch_panoptic(scores, full, isthing, settings)
    ids, segments = script.panoptic(scores.numpy(), masks.numpy(), isthing, (64, 96), size, 0.4, overlap)
    # pixels between two masks may round to the other one
    assert np.mean(ids != expected.ids.numpy()) < 1e-3
    assert [label for _, label, _ in segments] == [s.category for s in expected.segments]
    assert [score for *_, score in segments] == pytest.approx([s.score for s in expected.segments])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("net.pt",), "net.pt"),
        (("words.npz",), "--words"),
        (("words.npz", "64x64", "dog"), "--size"),
        (("net.onnx", "64"), "--size 64"),
        (("net.onnx", None, "dog,dog"), "--words"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    out, *rest = arguments
    with pytest.raises(SettingError, match=named):
        export(Path("missing.ckpt"), tmp_path / out, *rest)


@pytest.mark.parametrize("size", [(100, 128), (32, 64), (64, 0)])
def test_size_must_be_a_multiple(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(SettingError, match=r"--size .* multiples of 64"):
        export_network(tiny_segmenter(), tmp_path / "net.onnx", size)


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odise_pl.export.onnx.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"odise_pl\[onnx\]"):
        export(Path("missing.ckpt"), tmp_path / "net.onnx")


def test_unwritable_target_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odise_pl.export.onnx._convert", lambda *_: pytest.fail("exported"))
    for out in (tmp_path / "missing" / "net.onnx", Path("/proc/net.onnx")):
        with pytest.raises(SettingError, match=r"net\.onnx"):
            export_network(tiny_segmenter(), out)


def test_captioner_of_sentences_is_refused(tmp_path: Path) -> None:
    segmenter = tiny_segmenter()
    clip = segmenter.model.clip
    segmenter.model.backbone.captioner = TextCaptioner(clip, None, lambda texts: torch.zeros(1, 77, 32))
    with pytest.raises(SettingError, match="--head-only"):
        export_network(segmenter, tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin", "crops", "fc_clip"])
def test_networks_of_other_methods_are_exported(name: str, tmp_path: Path) -> None:
    make = partial(tiny_models.odise, window=128, input_size=128)
    crops = ClassifierSettings(regions="cropped")
    model = {
        "vit": partial(make, family="vit"),
        "swin": partial(make, family="swin"),
        "crops": partial(make, family="convnext", classifier=crops),
        "fc_clip": tiny_models.fc_clip,
    }[name]()
    tiny_models.stir(model, size=0.05)
    segmenter = Segmenter(model, TRAINED, EvalResize(128, 256))
    export_network(segmenter, tmp_path / "net.onnx", (128, 256), WORDS)
    image = torch.rand(1, 3, 128, 256, generator=torch.Generator().manual_seed(0))
    found = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"image": image.numpy()})
    graph = NetworkGraph(model, (128, 256), model.prepare(load_vocabulary(WORDS), TRAINED), head_only=False)
    with torch.no_grad():
        wanted = graph((image,), ())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=0, atol=1e-4)


def calibrated() -> Odise:
    model = tiny_models.dense("dpt")
    model.inference = InferenceSettings(seen_penalty=0.2)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "constant"),
    [
        (calibrated, False),
        (partial(tiny_models.dense, "aspp", logit_scale=5.0), True),
        (partial(tiny_models.dense, "deeplab", GeneratorSettings(16, 8, 4)), False),
        (tiny_models.grouping, True),
    ],
    ids=["calibrated", "dense", "generated", "groupvit"],
)
def test_example_segments_as_pytorch(
    make: Callable[[], SegmentationNetwork], constant: bool, script: ModuleType, tmp_path: Path
) -> None:
    segmenter = Segmenter(make().eval(), TRAINED, EvalResize(64, 128))
    words = ["background", "dog,puppy", "cat", "grass:stuff"]
    export_network(segmenter, tmp_path / "net.onnx", (64, 128), words if constant else None)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    arrays = {} if constant else dict(np.load(export_embeddings(segmenter, tmp_path / "words.npz", words)))
    image = picture(64, 128)
    ids, segments, names = script.segment(session, image, arrays)
    expected = segmenter(image, words)
    assert np.mean(ids != expected.ids) < 1e-2
    assert [names[label] for _, label, _ in segments] == [s.name for s in expected.segments]
    assert [score for *_, score in segments] == pytest.approx([s.score for s in expected.segments], abs=1e-3)
    assert len(segments) > 1


# with these weights, what the scores lack to 1 is not what decides on objects
@pytest.mark.parametrize(
    ("kind", "size", "sign"), [("product", 0.08, -1), ("flat_seen", 0.12, 1), ("refined", 0.2, 1)]
)
def test_masks_of_other_rules_are_merged_as_by_pytorch(
    kind: str, size: float, sign: int, script: ModuleType
) -> None:
    refined = kind == "refined"  # masks have the size of CLIP's square
    classifier = ClassifierSettings("discriminative") if refined else ClassifierSettings(rule=kind)
    supervision, refinement = ("mask", RefinementSettings((1,))) if refined else ("label", None)
    model = tiny_models.odise(supervision, classifier=classifier, refinement=refinement, family="convnext")
    tiny_models.stir(model, size=size)
    model.inference = InferenceSettings(overlap_threshold=0.1)
    if not refined:
        with torch.no_grad():
            model.text_projection.null_embed.mul_(sign)
    segmenter, image = Segmenter(model, TRAINED, EvalResize(64, 128)), picture(64, 128)
    classes = model.prepare(load_vocabulary(WORDS), TRAINED)
    graph = NetworkGraph(model, (64, 128), classes, head_only=False)
    with torch.no_grad():
        outputs = graph((image_tensor(pixel_tensor(image))[None],), ())
    found = [one.numpy() for one in outputs]
    ids, segments = script.panoptic(*found, classes.isthing, (64, 128), (64, 128), 0.0, 0.1)
    expected = segmenter(image, WORDS)
    assert np.mean(ids != expected.ids) < 1e-3
    assert [score for *_, score in segments] == pytest.approx([s.score for s in expected.segments], abs=1e-4)
    assert segments


def test_example_refuses_what_does_not_fit(script: ModuleType) -> None:
    def session(*names: str) -> Any:
        return SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name=name) for name in names])

    for inputs, words in [
        (("image", "mask_text"), {}),
        (("image", "mask_text"), {"names": np.array(["dog"])}),
        (("image",), {"mask_text": np.zeros((1, 4))}),
    ]:
        with pytest.raises(SystemExit, match="--embeddings"):
            script.segment(session(*inputs), picture(64, 64), words)
    with pytest.raises(SystemExit, match="--head-only"):
        script.segment(session("s2", "s3"), picture(64, 64), {})


def test_head_takes_the_strides_of_the_backbone() -> None:
    name, options = tiny_timm.FAMILIES["resnet"]
    model = build_odise(
        TimmSettings(name, options=options | {"output_stride": 8}, window="whole", channels=None),
        ClipSettings(architecture=tiny_models.CLIP),
        None,
        DenseSettings(channels=64, embed_dim=None, kind="aspp"),
        ClassifierSettings("diffusion"),
        InferenceSettings(),
    )
    graph = NetworkGraph(model, (64, 128), None, head_only=True)
    given, _ = graph.example(model.prepare(TRAINED, None))
    with torch.no_grad():
        own = model.backbone(torch.rand(1, 3, 64, 128))
    assert [one.shape for one in given] == [one.shape for one in own]


@pytest.mark.parametrize("window", [64, 96])
def test_default_size_is_a_window(window: int) -> None:
    model = tiny_models.odise(family="convnext", window=window)
    assert NetworkGraph(model, None, None, head_only=False).size == (64 * -(-window // 64),) * 2


def test_learned_prompts_are_exported(tmp_path: Path) -> None:
    model = build_odise(
        BackboneSettings(architecture=tiny_models.SD1, input_size=64, window=64, channels=128),
        ClipSettings(architecture=tiny_models.CLIP, prompt_tokens=2),
        implicit_captioner(),
        tiny_models.HEAD,
        ClassifierSettings(),
        InferenceSettings(),
    )
    segmenter = Segmenter(model.eval(), TRAINED, EvalResize(64, 128))
    assert np.load(export_embeddings(segmenter, tmp_path / "words.npz", WORDS))["mask_text"].shape[0] == 7
    assert not segmenter._embed(model, TRAINED).mask_text.embeddings.requires_grad


def test_rules_that_compare_words_need_them() -> None:
    model = tiny_models.odise(classifier=ClassifierSettings(rule="flat_seen"))
    with pytest.raises(SettingError, match=r"fusion\.rule=flat_seen.*--words"):
        NetworkGraph(model, (64, 64), None, head_only=False)
    NetworkGraph(model, (64, 64), None, head_only=True)
    with pytest.raises(SettingError, match=r"GroupViT.*--words"):
        NetworkGraph(tiny_models.grouping(), None, None, head_only=False)
    nameless = tiny_models.odise("mask", classifier=ClassifierSettings("discriminative"))
    with pytest.raises(SettingError, match=r"--head-only.*CLIP"):
        NetworkGraph(nameless, (64, 64), None, head_only=True)
