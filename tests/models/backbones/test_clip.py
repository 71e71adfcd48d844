from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from odise_pl.errors import SettingError
from odise_pl.models.backbones.clip import FrozenCLIP, build_clip, load_clip
from odise_pl.models.backbones.tokens import tokenize
from odise_pl.models.weights import WeightsError


def images(count: int = 2, height: int = 70, width: int = 90) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def some_patches() -> torch.Tensor:
    """Masks of random patches; the first is empty, the second full."""
    visible = torch.rand(2, 5, 16, generator=torch.Generator().manual_seed(1)) > 0.5
    visible[:, 0], visible[:, 1] = False, True
    return visible


@pytest.mark.parametrize("size", [(57, 99), (40, 30)])
def test_preprocessing_equals_torchvision(size: tuple[int, int]) -> None:
    clip = tiny_models.clip()
    x = images(2, *size)
    resized = tv.resize(x, [56], InterpolationMode.BICUBIC, antialias=False)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    expected = tv.normalize(tv.center_crop(resized, [56, 56]), list(mean), list(std))
    torch.testing.assert_close(clip.preprocess(x), expected)


def test_embeddings_equal_open_clip() -> None:
    clip = tiny_models.clip()
    x, texts = images(), ["a dog", "", "word " * 100]
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(x), clip.model.encode_image(clip.preprocess(x)))
        expected = clip.model.encode_text(open_clip.get_tokenizer("ViT-L-14-336")(texts))
    torch.testing.assert_close(clip.encode_text(texts), expected)


def test_a_prompt_stands_in_front_of_a_text() -> None:
    plain = tiny_models.clip()
    prompted = FrozenCLIP(plain.model, prompt_tokens=4)
    words = plain.model.token_embedding(tokenize(["a photo of a"], plain.model.vocab_size, 6))[0, 1:5]
    assert prompted.prompt is not None
    prompted.prompt.data.copy_(words)
    found = prompted.encode_text(["dog", "traffic light."])
    expected = plain.encode_text(["a photo of a dog", "a photo of a traffic light."])
    torch.testing.assert_close(found, expected)
    assert torch.equal(prompted.encode_text(["very " * 99])[0], prompted.encode_text(["very " * 200])[0])


def test_only_the_prompt_learns() -> None:
    clip = FrozenCLIP(tiny_models.clip().model, prompt_tokens=2)
    clip.encode_text(["dog"]).sum().backward()
    assert {name for name, p in clip.named_parameters() if p.grad is not None} == {"prompt"}


def test_a_prompt_leaves_place_for_a_text() -> None:
    with pytest.raises(SettingError, match=r"clip\.prompt_tokens=75"):
        FrozenCLIP(tiny_models.clip().model, prompt_tokens=75)


def test_mask_embedding_equals_open_clip_with_attention_mask() -> None:
    """Run tokens and copies through open_clip's blocks with an additive attention mask."""
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


def test_mask_embeddings_under_bfloat16_autocast() -> None:
    clip = tiny_models.clip()
    x, visible = clip.preprocess(images()), some_patches()
    exact = clip.encode_masks(x, visible)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = clip.encode_masks(x, visible)
    assert torch.cosine_similarity(exact, rough.float(), dim=-1).min() > 0.999


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    source = build_clip(tiny_models.CLIP)
    path = tmp_path / f"clip{suffix}"
    tensors = source.state_dict()
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        # OpenAI's files have such metadata
        torch.save({"state_dict": tensors | {"input_resolution": torch.tensor(56)}}, path)
    loaded = load_clip(str(path), tiny_models.CLIP)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), source.parameters(), strict=True))
    with pytest.raises(WeightsError, match=rf"clip\{suffix} does not fit CLIP: .*shape"):
        load_clip(str(path), replace(tiny_models.CLIP, vision_width=96))


def test_missing_weights_are_named() -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pt"):
        load_clip("nowhere.pt", tiny_models.CLIP)
