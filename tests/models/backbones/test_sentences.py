from __future__ import annotations

from pathlib import Path

import pytest
import tiny_blip
import tiny_models
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.backbones.captioners import TextCaptioner
from odise_pl.models.backbones.sentences import NameRanking
from odise_pl.models.backbones.text_encoders import TextEncoder, encode_prompts
from odise_pl.models.blip import load_blip
from odise_pl.models.weights import WeightsError

NAMES = ("dog", "cat", "grass", "sky")


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_name_ranking_follows_clip_similarity() -> None:
    ranking = NameRanking(tiny_models.clip(), NAMES, top=2, template="here: {}", prompt="one {}")
    clip = tiny_models.clip()
    texts = F.normalize(clip.encode_text([f"one {name}" for name in NAMES]), dim=-1)
    scores = F.normalize(clip.encode_image(images()), dim=-1) @ texts.T
    expected = [
        "here: " + ", ".join(name for _, name in sorted(zip(row, NAMES, strict=True), reverse=True)[:2])
        for row in scores.tolist()
    ]
    assert ranking(images()) == expected


@pytest.mark.parametrize(("changes", "message"), [
    ({"top": 0}, r"captioner\.top=0"),
    ({"top": 5}, r"captioner\.top=5"),
    ({"template": "nothing"}, "captioner.template='nothing'"),
    ({"prompt": "nothing"}, "captioner.prompt='nothing'"),
])  # fmt: skip
def test_invalid_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        NameRanking(tiny_models.clip(), NAMES, **({"top": 2} | changes))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP with a tokenizer of 32 words."""
    folder = tmp_path_factory.mktemp("blip")
    return tiny_blip.save(folder)


def test_blip_captions_are_greedy(blip: Path) -> None:
    sentences = load_blip(str(blip), max_tokens=4)
    captions = sentences(images())
    assert captions == sentences(images())
    assert all(set(caption.split()) <= set(tiny_blip.WORDS[5:]) | {"[UNK]"} for caption in captions)
    first = sentences.model(
        pixel_values=_pixels(images()), input_ids=torch.full((3, 1), 4)
    ).logits[:, -1].argmax(-1)  # fmt: skip
    spoken = [caption.split()[0] if caption else "" for caption in captions]
    assert spoken == [tiny_blip.WORDS[i] if i > 4 else "" for i in first.tolist()]
    assert not any(p.requires_grad for p in sentences.parameters())


def _pixels(x: Tensor) -> Tensor:
    x = F.interpolate(x, (32, 32), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    return (x - mean) / torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def test_text_captioner_with_blip(blip: Path) -> None:
    encode = TextEncoder(tiny_models.diffusion().text_encoder)
    describe = load_blip(str(blip), max_tokens=4)
    captioner = TextCaptioner(tiny_models.clip(), describe, encode, time_dim=16, steps=2).train()
    condition = captioner(images())
    expected = encode_prompts(tiny_models.diffusion().text_encoder, describe(images()))
    torch.testing.assert_close(condition.context, expected)
    assert condition.time is not None
    assert condition.time.shape == (3, 2, 16)
    assert not describe.model.training
    trained = {name.split(".")[0] for name, p in captioner.named_parameters() if p.requires_grad}
    assert trained == {"time_project", "alpha_time"}


@pytest.mark.parametrize("captions", [None, ("a dog", None, "a cat")], ids=str)
def test_missing_captions_are_refused(captions: tuple[str | None, ...] | None) -> None:
    encode = TextEncoder(tiny_models.diffusion().text_encoder)
    captioner = TextCaptioner(tiny_models.clip(), None, encode)
    expected = encode_prompts(tiny_models.diffusion().text_encoder, ["a dog", "", "a dog"])
    torch.testing.assert_close(captioner(images(), ["a dog", "", "a dog"]).context, expected)
    with pytest.raises(SettingError, match=r"captioner\.on_the_fly=true"):
        captioner(images(), captions)


def test_digest_depends_only_on_weights(blip: Path, tmp_path: Path) -> None:
    tiny_blip.save(tmp_path)
    one, other = load_blip(str(blip)), load_blip(str(tmp_path))
    assert one.digest() == other.digest()
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1
    assert one.digest() != other.digest()


def test_missing_blip_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"captioner.weights={tmp_path}.*blip-image-captioning-base"):
        load_blip(str(tmp_path))
