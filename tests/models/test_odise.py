from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.classifiers import fuse, max_over_synonyms
from odise_pl.models.heads.mask_decoder import DecoderOutput
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import ClassifierSettings, Odise, TextClasses, pad_images
from odise_pl.structures import Prediction
from odise_pl.vocabulary import Category, Vocabulary

VOCABULARY = tiny_models.vocabulary(("dog", "puppy"), ("grass",), ("sky", "clouds", "heaven"), things=1)
TRAINING = tiny_models.vocabulary(("Puppy", "wolf"), ("tree",), ("sky",))


@cache
def model(supervision: str = "label") -> Odise:
    """Shared: change its settings by a copy only, and never its weights."""
    network = tiny_models.odise(supervision, input_size=128)
    tiny_models.stir(network.mask_decoder)
    tiny_models.stir(network.text_projection)
    return network


def with_settings(network: Odise, **settings: Any) -> Odise:
    """The same weights under other settings of the classifier."""
    other = Odise(
        network.backbone, network.pixel_decoder, network.mask_decoder, network.text_projection, network.clip,
        replace(network.classifier, **{k: v for k, v in settings.items() if k != "published_quirks"}),
        InferenceSettings(overlap_threshold=0.1), settings.get("published_quirks", False),
    )  # fmt: skip
    return other.eval()


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def wide(values: Tensor) -> float:
    return values.abs().max().item()


@torch.no_grad()
def decoded(network: Odise, images: Tensor) -> DecoderOutput:
    return network.decode(images)[-1]


def check_prediction(prediction: Prediction, size: tuple[int, int], classes: int) -> None:
    assert tuple(prediction.panoptic.ids.shape) == tuple(prediction.semantic.shape) == size
    assert prediction.instances.masks.shape[1:] == size
    ids = {segment.id for segment in prediction.panoptic.segments}
    assert set(prediction.panoptic.ids.unique().tolist()) - {0} == ids
    assert all(0 <= s.category < classes and 0 <= s.score <= 1 for s in prediction.panoptic.segments)
    assert 0 <= int(prediction.semantic.min()) <= int(prediction.semantic.max()) < classes
    assert prediction.instances.scores.isfinite().all()


# --- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("supervision", "columns"), [("label", 4), ("caption", 2)])
def test_training_predictions_of_every_output(supervision: str, columns: int) -> None:
    network = model(supervision)
    classes = network.encode_classes(VOCABULARY.labels)
    outputs = network(torch.rand(2, 3, 64, 96), classes)
    assert len(outputs) == tiny_models.HEAD.layers + 1
    for output in outputs:
        assert output.class_logits.shape == (2, 10, columns)
        assert output.mask_logits.shape == (2, 10, 16, 24)
        assert output.mask_embed.shape == (2, 10, 32)
        assert 0 < output.logit_scale <= 100


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(
    autocast: bool, checkpoint: bool
) -> None:
    network = tiny_models.odise(checkpoint_activations=checkpoint).train()
    classes = network.encode_classes(VOCABULARY.labels)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        outputs = network(torch.rand(1, 3, 64, 64), classes)
        loss = sum(
            o.class_logits.float().square().mean() + o.mask_logits.float().square().mean() for o in outputs
        )
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    gates = network.backbone.captioner.alpha_cond, network.backbone.captioner.alpha_time
    assert all(gate.grad.abs().sum() > 0 for gate in gates)


def test_frozen_parts_stay_in_eval_mode_when_the_network_trains() -> None:
    network = tiny_models.odise().train()
    frozen = (network.clip, network.backbone.features)
    assert not any(m.training for part in frozen for m in part.modules())
    assert network.mask_decoder.training
    assert network.backbone.training


def test_clip_is_held_once() -> None:
    network = model()
    assert network.backbone.captioner.clip is network.clip


# --- vocabularies -----------------------------------------------------------------------------------------


def test_preparing_embeds_every_name_in_both_prompts() -> None:
    network = with_settings(model(), mask_prompt="{}", clip_prompt="a photo of a {}.")
    classes = network.prepare(VOCABULARY, None)
    names = ["dog", "puppy", "grass", "sky", "clouds", "heaven"]
    assert classes.mask_text.counts == classes.clip_text.counts == (2, 1, 3)
    torch.testing.assert_close(classes.mask_text.embeddings, network.clip.encode_text(names))
    prompts = [f"a photo of a {name}." for name in names]
    torch.testing.assert_close(classes.clip_text.embeddings, network.clip.encode_text(prompts))
    assert classes.isthing == (True, False, False)


def test_classes_that_share_a_name_with_training_count_as_seen() -> None:
    network = with_settings(model(), seen_share=0.2, unseen_share=0.9)
    torch.testing.assert_close(
        network.prepare(VOCABULARY, TRAINING).clip_share, torch.tensor([0.2, 0.9, 0.2])
    )
    torch.testing.assert_close(network.prepare(VOCABULARY, None).clip_share, torch.tensor([0.9, 0.9, 0.9]))


def test_braces_in_a_name_are_letters() -> None:
    odd = Vocabulary("odd", (Category(0, "a {} b {x}"),))
    network = model()
    torch.testing.assert_close(
        network.prepare(odd, None).clip_text.embeddings,
        network.clip.encode_text(["a photo of a a {} b {x}."]),
    )


def test_a_vocabulary_of_one_class() -> None:
    network = with_settings(model())
    one = tiny_models.vocabulary(("dog",))
    images, sizes = pad_images([image(60, 90)])
    prediction = network.predict(images, sizes, [(45, 70)], network.prepare(one, None))[0]
    check_prediction(prediction, (45, 70), 1)
    assert not prediction.semantic.any()


@pytest.mark.parametrize("supervision", ["label", "caption"])
def test_a_vocabulary_of_hundreds_of_classes_with_synonyms(supervision: str) -> None:
    network = with_settings(model(supervision))
    labels = [(f"thing {i}", *[f"word {i} {j}" for j in range(i % 3)]) for i in range(300)]
    many = tiny_models.vocabulary(*labels, things=150)
    classes = network.prepare(many, VOCABULARY)
    images, sizes = pad_images([image(64, 64)])
    check_prediction(network.predict(images, sizes, [(64, 64)], classes)[0], (64, 64), 300)


# --- classification ---------------------------------------------------------------------------------------


def expected_probabilities(network: Odise, output: DecoderOutput, images: Tensor, share: Tensor) -> Tensor:
    """Section 3.5 of the paper, for pictures without padding."""
    classes = network.prepare(VOCABULARY, TRAINING)
    text = network.text_projection.proj(classes.mask_text.embeddings)
    cosine = F.cosine_similarity(output.mask_embed[:, :, None], text[None, None], dim=-1)
    mask_logits = max_over_synonyms(output.logit_scale * cosine, classes.mask_text.counts)
    if output.object_logits is None:
        assert network.text_projection.null_embed is not None
        null = network.text_projection.proj(network.text_projection.null_embed)
        nothing = output.logit_scale * F.cosine_similarity(output.mask_embed, null[None], dim=-1)[..., None]
        no_object = torch.cat([mask_logits, nothing], dim=-1).softmax(-1)[..., -1:]
    else:
        no_object = output.object_logits.softmax(-1)[..., 1:]
    clip, side = network.clip, network.clip.image_size
    resized = [F.interpolate(x, (side, side), mode="bilinear") for x in (images, output.mask_logits)]
    shown = F.max_pool2d(resized[1], clip.patch_size).flatten(2) >= 0
    embeddings = clip.encode_masks(clip.normalize(resized[0]), shown)
    cosine = F.cosine_similarity(embeddings[:, :, None], classes.clip_text.embeddings[None, None], dim=-1)
    scale = min(float(clip.model.logit_scale.exp()), 100)
    clip_logits = max_over_synonyms(scale * cosine, classes.clip_text.counts)
    return torch.cat([fuse(mask_logits, clip_logits, share) * (1 - no_object), no_object], dim=-1)


@pytest.mark.parametrize("supervision", ["label", "caption"])
@pytest.mark.parametrize(("mode", "share"), [("both", [0.3, 0.7, 0.3]), ("diffusion", [0.0] * 3),
                                             ("discriminative", [1.0] * 3)])  # fmt: skip
@torch.no_grad()
def test_scores_are_the_papers(supervision: str, mode: str, share: list[float]) -> None:
    network = with_settings(model(supervision), mode=mode)
    images, sizes = pad_images([image(64, 128), image(64, 128, 1)])
    output = decoded(network, images)
    logits = network.classify(output, images, sizes, network.prepare(VOCABULARY, TRAINING))
    expected = expected_probabilities(network, output, images, torch.tensor(share))
    torch.testing.assert_close(logits.exp(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 10), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_diffusion_classifier_leaves_clips_masks_alone() -> None:
    network = with_settings(model(), mode="diffusion")
    images, sizes = pad_images([image(64, 64)])
    output, classes = decoded(network, images), network.prepare(VOCABULARY, None)
    calls: list[object] = []
    handle = network.clip.model.visual.conv1.register_forward_pre_hook(lambda *args: calls.append(args))
    network.classify(output, images, sizes, classes)
    handle.remove()
    assert calls == []


@torch.no_grad()
def test_quirks_change_nothing_without_padding_and_something_with_it() -> None:
    published, ours = (with_settings(model(), published_quirks=flag) for flag in (True, False))
    classes = ours.prepare(VOCABULARY, TRAINING)
    images, sizes = pad_images([image(64, 128)])
    output = decoded(ours, images)
    one, other = (network.classify(output, images, sizes, classes) for network in (published, ours))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    one, other = (n._clip_mask_embeddings(output.mask_logits, images, [(40, 70)]) for n in (published, ours))
    assert wide(one - other) > 1e-3


@torch.no_grad()
def test_masked_clip_does_not_see_the_padding() -> None:
    network = model()
    small, sizes = pad_images([image(64, 64)])
    large = F.pad(small, (0, 64, 0, 64))
    masks = 3 * torch.randn(1, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    # beyond the picture the masks of the large canvas go on as at its edge
    padded = F.pad(masks, (0, 16, 0, 16), mode="replicate")
    torch.testing.assert_close(
        network._clip_mask_embeddings(masks, small, sizes),
        network._clip_mask_embeddings(padded, large, sizes),
    )


@pytest.mark.parametrize(("size", "windows"), [((64, 64), 1), ((128, 192), 6)])
def test_masked_clip_runs_once_per_image(
    size: tuple[int, int], windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = model()
    cuts, shown, encode = list[int](), list[int](), network.clip.encode_masks

    def noting(images: Tensor, visible: Tensor) -> Tensor:
        shown.append(len(images))
        return encode(images, visible)

    monkeypatch.setattr(network.clip, "encode_masks", noting)
    handle = network.backbone.features.register_forward_pre_hook(lambda _, args: cuts.append(len(args[0])))
    images, sizes = pad_images([image(*size)])
    network.predict(images, sizes, sizes, network.prepare(VOCABULARY, TRAINING))
    handle.remove()
    assert (sum(cuts), shown) == (windows, [1])


# --- prediction -------------------------------------------------------------------------------------------


def test_an_image_is_predicted_alike_alone_and_in_a_batch() -> None:
    network = with_settings(model())
    classes = network.prepare(VOCABULARY, TRAINING)
    images, sizes = pad_images([image(64, 90), image(40, 128, 1), image(50, 50, 2)])
    outputs = [(64, 90), (80, 200), (25, 25)]
    together = network.predict(images, sizes, outputs, classes)
    whole = decoded(network, images)
    for i in range(3):
        one = slice(i, i + 1)
        part = decoded(network, images[one])
        for a, b in ((part.mask_logits[0], whole.mask_logits[i]), (part.mask_embed[0], whole.mask_embed[i])):
            torch.testing.assert_close(a, b, rtol=0, atol=5e-3 * wide(b))
        alone = network.predict(images[one], sizes[one], outputs[one], classes)[0]
        check_prediction(alone, outputs[i], 3)
        assert (alone.semantic == together[i].semantic).float().mean() > 0.98


def test_prediction_leaves_no_graph() -> None:
    network = with_settings(model())
    images, sizes = pad_images([image(64, 64)])
    prediction = network.predict(images, sizes, sizes, network.prepare(VOCABULARY, None))[0]
    assert not prediction.instances.scores.requires_grad


@pytest.mark.parametrize("supervision", ["label", "caption"])
def test_prediction_under_bfloat16_autocast(supervision: str) -> None:
    network = with_settings(model(supervision))
    classes = network.prepare(VOCABULARY, TRAINING)
    images, sizes = pad_images([image(60, 100)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = network.predict(images, sizes, [(30, 50)], classes)[0]
    check_prediction(prediction, (30, 50), 3)


def test_text_classes_move_as_one() -> None:
    classes = TextClasses(torch.ones(3, 2), (1, 2)).to("meta")
    assert classes.embeddings.device.type == "meta"
    assert classes.counts == (1, 2)


# --- canvas and settings ----------------------------------------------------------------------------------


def test_images_are_padded_with_zeros_right_and_below() -> None:
    batch = [image(65, 10), image(30, 100, 1)]
    padded, sizes = pad_images(batch)
    assert padded.shape == (2, 3, 128, 128)
    assert sizes == [(65, 10), (30, 100)]
    for x, original, (h, w) in zip(padded, batch, sizes, strict=True):
        assert torch.equal(x[:, :h, :w], original)
        assert x.sum() == pytest.approx(original.sum().item(), rel=1e-5)
    assert pad_images([image(64, 128)])[0].shape == (1, 3, 64, 128)
    assert pad_images([image(33, 65)], multiple=32)[0].shape == (1, 3, 64, 96)


@pytest.mark.parametrize(("settings", "message"), [
    ({"mode": "neither"}, "classifier.mode=neither: choose one of both, diffusion, discriminative"),
    ({"seen_share": 1.5}, "classifier.seen_share=1.5 must lie in 0..1"),
    ({"unseen_share": -0.5}, "classifier.unseen_share=-0.5 must lie in 0..1"),
    ({"clip_prompt": "a photo"}, "classifier.clip_prompt='a photo' needs a {} where names go"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierSettings(**settings)
