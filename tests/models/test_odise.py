from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.classifiers.fusion import RULES, ClassifierSettings, fuse
from odise_pl.models.classifiers.text import cosine_logits, max_over_synonyms
from odise_pl.models.heads.mask_decoder import DecoderOutput
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import Odise, pad_images
from odise_pl.structures import Prediction

VOCABULARY = tiny_models.vocabulary(("dog", "puppy"), ("a {} b",), ("sky", "clouds", "heaven"), things=1)
TRAINING = tiny_models.vocabulary(("Puppy", "wolf"), ("tree",), ("sky",))


@cache
def model(supervision: str = "label") -> Odise:
    """Shared between tests: do not change it."""
    network = tiny_models.odise(supervision, input_size=128)
    tiny_models.stir(network.mask_decoder)
    tiny_models.stir(network.text_projection)
    return network


def with_settings(network: Odise, **settings: Any) -> Odise:
    """A network with the same weights and other classifier settings."""
    other = Odise(
        network.backbone, network.pixel_decoder, network.mask_decoder, network.text_projection, network.clip,
        replace(network.classifier, **{k: v for k, v in settings.items() if k != "published_quirks"}),
        InferenceSettings(overlap_threshold=0.1), settings.get("published_quirks", False),
        network.class_agnostic,
    )  # fmt: skip
    return other.eval()


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def wide(values: Tensor) -> float:
    return values.abs().max().item()


@torch.no_grad()
def decoded(network: Odise, images: Tensor) -> DecoderOutput:
    return network.decode(images)[-1]


@cache
def decoded_scene(supervision: str) -> tuple[Tensor, list[tuple[int, int]], DecoderOutput]:
    """Two images, their sizes, and what the network makes of them; not to be changed."""
    images, sizes = pad_images([image(64, 128), image(64, 128, 1)])
    return images, sizes, decoded(model(supervision), images)


def check_prediction(prediction: Prediction, size: tuple[int, int], classes: int) -> None:
    assert tuple(prediction.panoptic.ids.shape) == tuple(prediction.semantic.shape) == size
    assert prediction.instances.masks.shape[1:] == size
    ids = {segment.id for segment in prediction.panoptic.segments}
    assert set(prediction.panoptic.ids.unique().tolist()) - {0} == ids
    assert all(0 <= s.category < classes and 0 <= s.score <= 1 for s in prediction.panoptic.segments)
    assert 0 <= int(prediction.semantic.min()) <= int(prediction.semantic.max()) < classes
    assert prediction.instances.scores.isfinite().all()


def test_gradients_reach_only_trainable_parameters() -> None:
    network = tiny_models.odise(checkpoint_activations=True).train()
    classes = network.encode_classes(VOCABULARY.labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(torch.rand(1, 3, 64, 64), classes)
        loss = sum(
            o.class_logits.float().square().mean() + o.mask_logits.float().square().mean() for o in outputs
        )
    assert isinstance(loss, Tensor)
    loss.backward()
    frozen = (network.clip, network.backbone.features)
    assert network.backbone.captioner.clip is network.clip
    assert not any(m.training for part in frozen for m in part.modules())
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    gates = network.backbone.captioner.alpha_cond, network.backbone.captioner.alpha_time
    assert all(gate.grad.abs().sum() > 0 for gate in gates)


def test_prepare_embeds_names_and_weighs_seen_classes() -> None:
    network = with_settings(model(), seen_share=0.2, unseen_share=0.9)
    classes = network.prepare(VOCABULARY, TRAINING)
    names = ["dog", "puppy", "a {} b", "sky", "clouds", "heaven"]
    assert classes.mask_text.counts == classes.clip_text.counts == (2, 1, 3)
    torch.testing.assert_close(classes.mask_text.embeddings, network.clip.encode_text(names))
    prompts = [f"a photo of a {name}." for name in names]
    torch.testing.assert_close(classes.clip_text.embeddings, network.clip.encode_text(prompts))
    assert classes.isthing == (True, False, False)
    # two of the classes share a name with training
    torch.testing.assert_close(classes.clip_share, torch.tensor([0.2, 0.9, 0.2]))
    torch.testing.assert_close(network.prepare(VOCABULARY, None).clip_share, torch.tensor([0.9, 0.9, 0.9]))


def expected_logits(network: Odise, output: DecoderOutput, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the head, with no object last, its probability, and CLIP's, for images without padding."""
    classes = network.prepare(VOCABULARY, TRAINING)
    text = network.text_projection.proj(classes.mask_text.embeddings)
    cosine = F.cosine_similarity(output.mask_embed[:, :, None], text[None, None], dim=-1)
    mask_logits = max_over_synonyms(output.logit_scale * cosine, classes.mask_text.counts)
    if network.class_agnostic:
        no_object = torch.zeros_like(mask_logits[..., :1])
        mask_logits = torch.cat([mask_logits, torch.full_like(no_object, -1e4)], dim=-1)
    elif output.object_logits is None:
        assert network.text_projection.null_embed is not None
        null = network.text_projection.proj(network.text_projection.null_embed)
        nothing = output.logit_scale * F.cosine_similarity(output.mask_embed, null[None], dim=-1)[..., None]
        mask_logits = torch.cat([mask_logits, nothing], dim=-1)
        no_object = mask_logits.softmax(-1)[..., -1:]
    else:
        no_object = output.object_logits.softmax(-1)[..., 1:]
        nothing = (mask_logits.exp().sum(-1, keepdim=True) * no_object / (1 - no_object)).log()
        mask_logits = torch.cat([mask_logits, nothing], dim=-1)
    clip, side = network.clip, network.clip.image_size
    resized = [F.interpolate(x, (side, side), mode="bilinear") for x in (images, output.mask_logits)]
    shown = F.max_pool2d(resized[1], clip.patch_size).flatten(2) >= 0
    embeddings = clip.encode_masks(clip.normalize(resized[0]), shown)
    cosine = F.cosine_similarity(embeddings[:, :, None], classes.clip_text.embeddings[None, None], dim=-1)
    scale = min(float(clip.model.logit_scale.exp()), 100)
    return mask_logits, no_object, max_over_synonyms(scale * cosine, classes.clip_text.counts)


@pytest.mark.parametrize("supervision", ["label", "caption"])
@pytest.mark.parametrize(("mode", "share"), [("both", [0.3, 0.7, 0.3]), ("diffusion", [0.0] * 3),
                                             ("discriminative", [1.0] * 3)])  # fmt: skip
@torch.no_grad()
def test_scores_equal_formulas_of_the_paper(supervision: str, mode: str, share: list[float]) -> None:
    network = with_settings(model(supervision), mode=mode)
    images, sizes, output = decoded_scene(supervision)
    scores = network.classify(output, images, sizes, network.prepare(VOCABULARY, TRAINING))
    head, no_object, clip = expected_logits(network, output, images)
    joint = fuse(head[..., :-1], clip, torch.tensor(share)) * (1 - no_object)
    expected = torch.cat([joint, no_object], dim=-1)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scores.sum(-1), torch.ones(2, 10), rtol=1e-4, atol=1e-4)


def slow_scores(rule: str, coat: float, head: list[float], nothing: float, clip: list[float]) -> list[float]:
    """Classes and no object of one mask, by the equations of the methods; the second class is unseen."""
    p, q = softmax(head)[:-1], softmax(clip)
    nothing *= 1 - coat * max(q)
    if rule == "flat_seen":
        q = softmax([*clip, head[-1]])[:-1]
        q[0] = q[2] = (q[0] + q[2]) / 2
    if rule == "normalised":
        p = softmax(head[:-1])
    else:  # p of classes and no object, where COAT lowers that of no object
        p = [value * (1 - nothing) for value in softmax(head[:-1])]
    joint = [p[k] ** (1 - share) * q[k] ** share for k, share in enumerate((0.3, 0.7, 0.3))]
    if rule == "normalised":
        joint = [value / sum(joint) * (1 - nothing) for value in joint]
    return [*joint, nothing]


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("supervision", "coat"), [("label", 0.5), ("label", 0.0), ("caption", 0.5), ("words", 0.0)]
)
@torch.no_grad()
def test_network_fuses_by_the_equations_of_methods(rule: str, supervision: str, coat: float) -> None:
    network = with_settings(model(supervision), rule=rule, objectness_share=coat)
    images, sizes, output = decoded_scene(supervision)
    scores = network.classify(output, images, sizes, network.prepare(VOCABULARY, TRAINING))
    masks = zip(*(x.flatten(0, 1).tolist() for x in expected_logits(network, output, images)), strict=True)
    expected = [slow_scores(rule, coat, head, nothing, clip) for head, (nothing,), clip in masks]
    torch.testing.assert_close(scores.flatten(0, 1), torch.tensor(expected), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_coat_needs_masks_that_may_be_no_object() -> None:
    with pytest.raises(ValueError, match=r"fusion\.objectness_share.*words"):
        with_settings(model("words"), objectness_share=0.5)


@torch.no_grad()
def test_clip_alone_ranks_seen_classes_with_every_rule() -> None:
    networks = [
        with_settings(model(), mode="discriminative", rule=rule) for rule in ("flat_seen", "normalised")
    ]
    images, sizes = pad_images([image(64, 128)])
    output = decoded(networks[0], images)
    classes = networks[0].prepare(VOCABULARY, TRAINING)
    one, other = (network.classify(output, images, sizes, classes) for network in networks)
    torch.testing.assert_close(one, other)


@torch.no_grad()
def test_published_quirks_only_matter_with_padding() -> None:
    published, ours = (with_settings(model(), published_quirks=flag) for flag in (True, False))
    classes = ours.prepare(VOCABULARY, TRAINING)
    images, sizes = pad_images([image(64, 128)])
    output = decoded(ours, images)
    one, other = (network.classify(output, images, sizes, classes) for network in (published, ours))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    one, other = (network.classify(output, images, [(40, 70)], classes) for network in (published, ours))
    assert wide(one - other) > 1e-3


@torch.no_grad()
def test_learned_prompts_do_not_see_padding() -> None:
    network, (images, sizes) = with_settings(model()), pad_images([image(40, 70)])
    network.clip = FrozenCLIP(network.clip.model, prompt_tokens=2)
    classes = network.encode_classes([("dog",), ("sky",)])
    (found,) = network(images, classes, None, sizes)[-1:]
    regions = network.embed_regions(found.mask_logits, images, sizes)
    expected = cosine_logits(regions, classes.embeddings, network.clip.logit_scale)
    torch.testing.assert_close(found.clip_logits, expected)
    assert wide(network(images, classes)[-1].clip_logits - expected) > 1e-3


@torch.no_grad()
def test_masked_clip_ignores_padding() -> None:
    network = model()
    small, sizes = pad_images([image(64, 64)])
    large = F.pad(small, (0, 64, 0, 64))
    masks = 3 * torch.randn(1, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    # in the padding, masks repeat the edge of the image
    padded = F.pad(masks, (0, 16, 0, 16), mode="replicate")
    torch.testing.assert_close(
        network.embed_regions(masks, small, sizes),
        network.embed_regions(padded, large, sizes),
    )


def test_single_prediction_equals_batched_prediction() -> None:
    network = with_settings(model())
    classes = network.prepare(VOCABULARY, TRAINING)
    images, sizes = pad_images([image(64, 90), image(40, 128, 1)])
    outputs = [(64, 90), (80, 200)]
    together = network.predict(images, sizes, outputs, classes)
    whole = decoded(network, images)
    for i in range(2):
        one = slice(i, i + 1)
        part = decoded(network, images[one])
        for a, b in ((part.mask_logits[0], whole.mask_logits[i]), (part.mask_embed[0], whole.mask_embed[i])):
            torch.testing.assert_close(a, b, rtol=0, atol=5e-3 * wide(b))
        alone = network.predict(images[one], sizes[one], outputs[one], classes)[0]
        check_prediction(alone, outputs[i], 3)
        assert (alone.semantic == together[i].semantic).float().mean() > 0.98


@pytest.mark.parametrize(("supervision", "count"), [("label", 300), ("caption", 1)])
def test_prediction_under_autocast(supervision: str, count: int) -> None:
    network = tiny_models.odise(supervision)
    tiny_models.stir(network.mask_decoder)
    labels = [(f"thing {i}", *[f"word {i} {j}" for j in range(i % 3)]) for i in range(count)]
    classes = network.prepare(tiny_models.vocabulary(*labels, things=150), VOCABULARY)
    images, sizes = pad_images([image(60, 40)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = network.predict(images, sizes, [(30, 50)], classes)[0]
    check_prediction(prediction, (30, 50), count)
    assert not prediction.instances.scores.requires_grad


@pytest.mark.parametrize("seen", [0, 1])
def test_seen_penalty_lowers_classes_of_the_training(seen: int) -> None:
    names = ("dog",), ("sky",)
    network = tiny_models.odise(inference=InferenceSettings(seen_penalty=1000.0))
    classes = network.prepare(tiny_models.vocabulary(*names), tiny_models.vocabulary(names[seen]))
    sizes = [(64, 64)]
    (found,) = network.predict(torch.rand(1, 3, 64, 64), sizes, sizes, classes)
    assert found.semantic.eq(1 - seen).all()


def test_pad_images() -> None:
    batch = [image(65, 10), image(30, 100, 1)]
    padded, sizes = pad_images(batch)
    assert padded.shape == (2, 3, 128, 128)
    assert sizes == [(65, 10), (30, 100)]
    for x, original, (h, w) in zip(padded, batch, sizes, strict=True):
        assert torch.equal(x[:, :h, :w], original)
        assert x.sum() == pytest.approx(original.sum().item(), rel=1e-5)
    assert pad_images([image(64, 128)])[0].shape == (1, 3, 64, 128)


@pytest.mark.parametrize(("settings", "message"), [
    ({"mode": "neither"}, "classifier.mode=neither"),
    ({"seen_share": 1.5}, "fusion.seen_share=1.5"),
    ({"unseen_share": -0.5}, "fusion.unseen_share=-0.5"),
    ({"clip_prompt": "a photo"}, "fusion.clip_prompt='a photo'"),
])  # fmt: skip
def test_invalid_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierSettings(**settings)


def test_several_prompts_and_names_are_averaged() -> None:
    network, prompts = model(), ("a {}.", "the {} there")
    labels = (("dog", "puppy"), ("sky",))
    unit = {
        name: torch.stack(
            [F.normalize(network.clip.encode_text([p.replace("{}", name)])[0], dim=0) for p in prompts]
        )
        for names in labels
        for name in names
    }
    classes = network.encode_classes(labels, prompts)
    assert classes.counts == (2, 1)
    expected = torch.stack([unit[name].mean(0) for name in ("dog", "puppy", "sky")])
    torch.testing.assert_close(classes.embeddings, expected)
    mean = network.encode_classes(labels, prompts, mean=True)
    assert mean.counts == (1, 1)
    normed = F.normalize(expected, dim=1)
    torch.testing.assert_close(mean.embeddings, torch.stack([normed[:2].mean(0), normed[2]]))
