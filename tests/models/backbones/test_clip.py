from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from odise_pl.models.backbones.clip import FrozenCLIP, build_clip, load_clip
from odise_pl.models.weights import WeightsError


def images(count: int = 2, height: int = 70, width: int = 90) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def some_patches(queries: int = 5) -> torch.Tensor:
    return torch.rand(2, queries, 16, generator=torch.Generator().manual_seed(1)) > 0.5


@pytest.mark.parametrize("size", [(56, 56), (57, 56), (80, 200), (333, 111), (40, 30), (64, 1000), (57, 99)])
def test_preprocessing_is_torchvisions(size: tuple[int, int]) -> None:
    clip = tiny_models.clip()
    x = images(2, *size)
    resized = tv.resize(x, [56], InterpolationMode.BICUBIC, antialias=False)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    expected = tv.normalize(tv.center_crop(resized, [56, 56]), list(mean), list(std))
    torch.testing.assert_close(clip.preprocess(x), expected)


def test_image_and_text_embeddings_are_open_clips() -> None:
    clip = tiny_models.clip()
    x, texts = images(), ["a dog", "", "word " * 100]
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(x), clip.model.encode_image(clip.preprocess(x)))
        expected = clip.model.encode_text(open_clip.get_tokenizer("ViT-L-14-336")(texts))
    torch.testing.assert_close(clip.encode_text(texts), expected)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_texts_may_be_encoded_in_chunks(chunk: int) -> None:
    clip = tiny_models.clip()
    texts = [f"name {i}" for i in range(7)]
    torch.testing.assert_close(clip.encode_text(texts, chunk=chunk), clip.encode_text(texts))


def test_a_mask_of_everything_gives_the_images_own_embedding() -> None:
    clip = tiny_models.clip()
    x = clip.preprocess(images())
    masks = clip.encode_masks(x, torch.ones(2, 3, 16, dtype=torch.bool))
    with torch.no_grad():
        whole = clip.model.encode_image(x)
    torch.testing.assert_close(masks, whole[:, None].expand(-1, 3, -1))


def test_a_masks_embedding_is_that_of_open_clip_with_an_attention_mask() -> None:
    """All tokens and copies through open_clip's own blocks, kept apart by one additive mask."""
    clip = tiny_models.clip()
    visual, x, visible = clip.model.visual, clip.preprocess(images()), some_patches()
    for b in range(2):
        with torch.no_grad():
            tokens = visual._embeds(x[b : b + 1])
            own, copies = tokens.shape[1], visible.shape[1]
            sequence = torch.cat([tokens, tokens[:, :1].expand(-1, copies, -1)], dim=1)
            blocked = torch.full((own + copies, own + copies), float("-inf"))
            blocked[:, :own] = 0
            blocked[own:, 1:own][~visible[b]] = float("-inf")
            for block in visual.transformer.resblocks:
                sequence = block(sequence, attn_mask=blocked)
            expected = visual.ln_post(sequence[0, own:]) @ visual.proj
        torch.testing.assert_close(clip.encode_masks(x, visible)[b], expected)


def test_other_masks_and_their_number_change_nothing() -> None:
    clip = tiny_models.clip()
    x, visible = clip.preprocess(images()), some_patches()
    together = clip.encode_masks(x, visible)
    for q in range(5):
        torch.testing.assert_close(clip.encode_masks(x, visible[:, q : q + 1])[:, 0], together[:, q])


def test_a_hidden_mask_still_sees_the_class_token() -> None:
    clip = tiny_models.clip()
    embedding = clip.encode_masks(clip.preprocess(images()), torch.zeros(2, 1, 16, dtype=torch.bool))
    assert embedding.isfinite().all()
    # the class token itself has seen the image, so two images differ
    assert not torch.allclose(embedding[0], embedding[1])


def test_in_one_layer_hidden_patches_have_no_influence() -> None:
    # deeper, the class token hands on what it has seen
    architecture = tiny_models.CLIPArchitecture(**{**vars(tiny_models.CLIP), "vision_layers": 1})
    clip = FrozenCLIP(build_clip(architecture))
    x = clip.preprocess(images(1))
    visible = torch.zeros(1, 2, 16, dtype=torch.bool)
    visible[0, 0, 5], visible[0, 1, 6] = True, True
    changed = x.clone()
    changed[..., 14:28, 28:42] += 1  # patch 6: row 1, column 2
    before, after = clip.encode_masks(x, visible), clip.encode_masks(changed, visible)
    torch.testing.assert_close(before[0, 0], after[0, 0])
    assert not torch.allclose(before[0, 1], after[0, 1])


def test_it_is_frozen_and_stays_in_eval_mode() -> None:
    clip = FrozenCLIP(build_clip(tiny_models.CLIP)).train()
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert not clip.encode_image(images()).requires_grad
    assert {name.split(".")[0] for name in clip.state_dict()} == {"model"}


def test_bfloat16_autocast_gives_nearly_the_same_embeddings() -> None:
    clip = tiny_models.clip()
    x, visible = clip.preprocess(images()), some_patches()
    exact = clip.encode_masks(x, visible)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = clip.encode_masks(x, visible)
    assert torch.cosine_similarity(exact, rough.float(), dim=-1).min() > 0.999


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    source = build_clip(tiny_models.CLIP)
    path = tmp_path / f"clip{suffix}"
    tensors = source.state_dict()
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        # what OpenAI's own files carry besides
        torch.save({"state_dict": tensors | {"input_resolution": torch.tensor(56)}}, path)
    loaded = load_clip(str(path), tiny_models.CLIP)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), source.parameters(), strict=True))


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(build_clip(tiny_models.CLIP).state_dict(), path)
    wider = tiny_models.CLIPArchitecture(**{**vars(tiny_models.CLIP), "vision_width": 96})
    with pytest.raises(WeightsError, match=r"other\.safetensors does not fit CLIP: .* shape"):
        load_clip(str(path), wider)


@pytest.mark.parametrize("weights", ["nowhere.pt", "ViT-L-14-336", "No-Such-Model:openai"])
def test_weights_that_are_nowhere_are_refused_by_name(weights: str) -> None:
    with pytest.raises(WeightsError, match=f"CLIP weights not found: {weights}; set clip.weights"):
        load_clip(weights)


def test_a_tag_that_open_clip_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="CLIP ViT-L-14-336:nobody"):
        load_clip("ViT-L-14-336:nobody")


OTHERS = ["RN50", "ViT-B-16-SigLIP", "ViT-L-14-CLIPA", "coca_ViT-B-32", "EVA02-L-14-336", "roberta-ViT-B-32",
          "ViT-H-14-worldwide"]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_models_without_a_class_token_or_with_other_words_are_refused_before_they_are_fetched(
    name: str,
) -> None:
    with pytest.raises(WeightsError, match=f"CLIP {name}:any is no vision transformer with a class token"):
        load_clip(f"{name}:any")
