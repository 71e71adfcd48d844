"""Relative mask attention against loops over masks, heads and patches."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import tiny_models
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.backbones.clip import CLIPArchitecture, FrozenCLIP, build_clip
from odise_pl.models.classifiers import refinement
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.classifiers.refinement import (
    MaskRefinement,
    RefinementSettings,
    join_patches,
    split_patches,
)
from odise_pl.models.classifiers.text import max_over_synonyms
from odise_pl.models.odise import Odise

# CLIPs of 2 blocks with 4 x 4 patches, and of 5 blocks with 3 x 3 patches
ARCHITECTURES = (
    tiny_models.CLIP,
    replace(
        tiny_models.CLIP,
        image_size=24,
        patch_size=8,
        vision_width=48,
        vision_layers=5,
        vision_head_width=16,
    ),
)
VOCABULARY = tiny_models.vocabulary(("dog", "puppy"), ("tree",), ("sky",), things=1)


@cache
def clip_of(architecture: CLIPArchitecture) -> FrozenCLIP:
    torch.manual_seed(0)
    return FrozenCLIP(build_clip(architecture))


def made(clip: FrozenCLIP, blocks: tuple[int, ...] | None = None) -> MaskRefinement:
    torch.manual_seed(1)
    module = RefinementSettings(blocks).build(clip)
    with torch.no_grad():
        for one in module.blocks.values():
            one.change.weight.mul_(3)  # so that masks change sides
            one.change.bias.sub_(0.5)
            one.norm.weight.uniform_(0.5, 1.5)
            one.norm.bias.uniform_(-1, 1)
    return module


def inputs(clip: FrozenCLIP, count: int = 4) -> tuple[Tensor, Tensor]:
    """Two images, and masks [2, count, S, S] of which the third is empty."""
    generator, size = torch.Generator().manual_seed(2), clip.image_size
    images = clip.normalize(torch.rand(2, 3, size, size, generator=generator))
    masks = 3 * torch.randn(2, count, 3, 3, generator=generator) - 2
    masks[:, 2] = -9
    return images, F.interpolate(masks, (size, size), mode="bilinear")


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weight + bias


def patch_places(clip: FrozenCLIP) -> list[tuple[slice, slice]]:
    step, count = clip.patch_size, clip.image_size // clip.patch_size
    return [
        (slice(y * step, y * step + step), slice(x * step, x * step + step))
        for y in range(count)
        for x in range(count)
    ]


def slow_attention(
    clip: FrozenCLIP, module: MaskRefinement, number: int, token: Tensor, memory: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """What a mask's class token [C] reads from the image's tokens [1 + P, C], and the refined mask."""
    block, places = clip.model.visual.transformer.resblocks[number - 1], patch_places(clip)
    own = dict(module.blocks).get(str(number))
    weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    query = weights[0] @ token + biases[0]
    keys, values = ([w @ x + b for x in memory] for w, b in zip(weights[1:], biases[1:], strict=True))
    heads, width = block.attn.num_heads, len(query) // block.attn.num_heads
    if own is not None:
        kernel = own.embed.weight.view(-1, 1, clip.patch_size, clip.patch_size)
        embedded = F.conv2d(mask.tanh()[None, None], kernel, own.embed.bias, stride=clip.patch_size)
        u = [layer_norm(e, own.norm.weight, own.norm.bias) for e in embedded[0].flatten(1).T]
    read = []
    for h in range(heads):
        part = slice(h * width, h * width + width)
        scores = {0: query[part] @ keys[0][part] / math.sqrt(width)}
        for p, place in enumerate(places):
            if not (mask[place].sigmoid() >= 0.5).any():
                continue
            scores[p + 1] = query[part] @ keys[p + 1][part] / math.sqrt(width)
            if own is not None:
                relative = u[p][part] @ (own.key.weight @ memory[p + 1])[part] / math.sqrt(width)
                scores[p + 1] = (scores[p + 1] + relative) / 2
        total = sum(score.exp() for score in scores.values())
        read.append(sum(score.exp() / total * values[i][part] for i, score in scores.items()))
    refined = mask.clone()
    for p, place in enumerate(places if own is not None else ()):
        r = query * keys[p + 1] / math.sqrt(width)
        change = own.change.weight @ (r * (1.702 * r).sigmoid()) + own.change.bias
        refined[place] = mask[place] + change.view(clip.patch_size, clip.patch_size)
    return block.attn.out_proj(torch.cat(read)), refined


def slow_refinement(
    clip: FrozenCLIP, module: MaskRefinement, image: Tensor, mask: Tensor
) -> tuple[Tensor, list[Tensor]]:
    visual, refined = clip.model.visual, []
    tokens = visual._embeds(image[None])
    token = tokens[0, 0]
    for number, block in enumerate(visual.transformer.resblocks, 1):
        read, mask = slow_attention(clip, module, number, block.ln_1(token), block.ln_1(tokens[0]), mask)
        token = token + read
        token = token + block.mlp(block.ln_2(token))
        tokens = block(tokens)
        if str(number) in module.blocks:
            refined.append(mask)
    return visual.ln_post(token) @ visual.proj, refined


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_refinement_equals_loops(architecture: CLIPArchitecture, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clip_of(architecture)
    module, (images, masks) = made(clip), inputs(clip)
    monkeypatch.setattr(refinement, "_QUERIES", 3)
    embeddings, refined = module.attend(clip, images, masks)
    layers = architecture.vision_layers
    assert [int(n) for n in module.blocks] == ([1, 2] if layers == 2 else [2, 3, 4, 5])
    for b in range(2):
        for q in range(masks.shape[1]):
            expected, steps = slow_refinement(clip, module, images[b], masks[b, q])
            torch.testing.assert_close(embeddings[b, q], expected, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(torch.stack([r[b, q] for r in refined]), torch.stack(steps))
    moved = [((after > 0) != (masks > 0)).any() for after in refined]
    assert all(moved), "later blocks see other patches"


@torch.no_grad()
def test_without_refinement_it_is_masked_clip() -> None:
    clip = clip_of(ARCHITECTURES[0])
    images, masks = inputs(clip)
    embeddings, refined = MaskRefinement([], 64, 2, clip.patch_size).attend(clip, images, masks)
    visible = F.max_pool2d(masks, clip.patch_size).flatten(2) >= 0
    torch.testing.assert_close(embeddings, clip.encode_masks(images, visible), rtol=1e-4, atol=1e-5)
    assert refined == []


def test_each_refinement_has_its_own_masks_and_gradients() -> None:
    clip = clip_of(ARCHITECTURES[1])
    module, (images, masks) = made(clip), inputs(clip)
    embeddings, refined = module.attend(clip, images, masks)
    refined[1].square().mean().backward(retain_graph=True)
    reached = {
        name: sum(bool(p.grad is not None and p.grad.any()) for p in one.parameters())
        for name, one in module.blocks.items()
    }
    # a block's attention changes masks of later blocks; its change is its own masks'
    assert reached == {"2": 7, "3": 2, "4": 0, "5": 0}
    embeddings.square().mean().backward()
    assert not any(p.requires_grad or p.grad is not None for p in clip.parameters())
    assert not torch.equal(refined[-1], refined[-2])


def test_initial_weights() -> None:
    module = RefinementSettings().build(
        clip_of(replace(tiny_models.CLIP, vision_width=1024, vision_head_width=64, vision_layers=4))
    )
    one = module.blocks["4"]
    for layer in (one.embed, one.change, one.key):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.in_features), rel=0.02)
    for layer in (one.embed, one.change):
        assert 0 <= layer.bias.min() < 0.05
        assert 0.95 < layer.bias.max() < 1
    assert sum(p.numel() for p in one.parameters()) == 2 * 14**2 * 1024 + 1024**2 + 3 * 1024 + 14**2


def test_bfloat16_autocast() -> None:
    clip = clip_of(ARCHITECTURES[0])
    module, (images, masks) = made(clip), inputs(clip)
    exact, _ = module.attend(clip, images, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, refined = module.attend(clip, images, masks)
    assert refined[-1].dtype == torch.float32
    assert torch.cosine_similarity(exact, rough.float(), dim=-1).min() > 0.99


def test_patches() -> None:
    masks = torch.randn(2, 3, 12, 12)
    patches = split_patches(masks, 4)
    assert torch.equal(patches[1, 2, 5], masks[1, 2, 4:8, 8:12].flatten())
    assert torch.equal(join_patches(patches, 4), masks)


# The network


def network(refined: bool = True, **settings: object) -> Odise:
    classifier = ClassifierSettings("discriminative", clip_prompt="{}")
    settings = {"refinement": RefinementSettings() if refined else None, "classifier": classifier} | settings
    return tiny_models.odise("mask", **settings)


def test_class_agnostic_masks_train_without_names() -> None:
    model = network(refined=False)
    images = torch.rand(1, 3, 64, 64)
    outputs = model(images, model.encode_names(VOCABULARY))
    assert len(outputs) == tiny_models.HEAD.layers + 1
    assert all(not one.class_logits.any() and one.class_logits.shape == (1, 10, 2) for one in outputs)
    sum(one.mask_logits.square().mean() for one in outputs).backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@torch.no_grad()
def test_only_clip_names_class_agnostic_masks() -> None:
    model, images = network(refined=False), torch.rand(1, 3, 64, 128)
    output, classes = model.decode(images)[-1], model.prepare(VOCABULARY, None)
    scores = model.classify(output, images, [(64, 128)], classes)
    embeddings = model.embed_regions(output.mask_logits, images, [(64, 128)])
    texts = model.clip.encode_text(["dog", "puppy", "tree", "sky"])
    cosine = F.cosine_similarity(embeddings[:, :, None], texts[None, None], dim=-1)
    expected = max_over_synonyms(model.clip.logit_scale * cosine, (2, 1, 1)).softmax(-1)
    torch.testing.assert_close(scores[..., :-1], expected, rtol=1e-4, atol=1e-5)
    assert scores[..., -1].max() < 1e-7


def test_refined_masks_are_named_in_training_and_replace_proposals() -> None:
    model, images = network().train(), torch.rand(2, 3, 64, 128)
    proposals = model._decode(images, None)[-1]
    outputs = model(images, model.encode_names(VOCABULARY))
    assert [one.mask_logits.shape for one in outputs] == [(2, 10, 56, 56)] * 2
    squashed = F.interpolate(images, (56, 56), mode="bicubic")
    masks = F.interpolate(proposals.mask_logits, (56, 56), mode="bilinear")
    assert model.refinement is not None
    embeddings, refined = model.refinement.attend(model.clip, model.clip.normalize(squashed), masks)
    texts = model.clip.encode_text(["dog", "puppy", "tree", "sky", "other"])
    scale = model.clip.logit_scale
    cosine = scale * F.cosine_similarity(embeddings[:, :, None], texts[None, None], dim=-1)
    for one, mask in zip(outputs, refined, strict=True):
        torch.testing.assert_close(one.mask_logits, mask)
        torch.testing.assert_close(one.class_logits, max_over_synonyms(cosine, (2, 1, 1, 1)))
    sum((one.mask_logits.mean() + one.class_logits.square().mean()) for one in outputs).backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"refinement"}
    with torch.no_grad():
        classes, output = model.prepare(VOCABULARY, None), model.decode(images)[-1]
        scores = model.classify(output, images, [(64, 128)] * 2, classes)
    torch.testing.assert_close(output.mask_logits, refined[-1])
    expected = max_over_synonyms(cosine[..., :-1], (2, 1, 1)).softmax(-1)
    torch.testing.assert_close(scores[..., :-1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("settings", "message"), [
    ({"classifier": ClassifierSettings("both")}, r"classifier\.mode=both"),
    ({"refinement": RefinementSettings((3,))}, r"model\.refinement\.blocks=\[3\]"),
    ({"refinement": RefinementSettings(())}, r"model\.refinement\.blocks=\[\]"),
])  # fmt: skip
def test_invalid_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**settings)


def test_other_networks_are_not_refined() -> None:
    with pytest.raises(ValueError, match=r"model\.refinement"):
        tiny_models.odise("label", refinement=RefinementSettings())
    with pytest.raises(ValueError, match=r"model\.refinement"):
        RefinementSettings().build(clip_of(replace(tiny_models.CLIP, trunk="convnext_atto")))


def test_a_copy_with_another_classifier_is_refused() -> None:
    model, images = network(refined=False), torch.rand(1, 3, 64, 64)
    model.classifier = replace(model.classifier, mode="diffusion")
    with pytest.raises(ValueError, match=r"classifier\.mode=diffusion"):
        model.predict(images, [(64, 64)], [(64, 64)], model.prepare(VOCABULARY, None))
