"""Text embeddings on disk."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import tiny_models
import torch
from torch import Tensor

from odise_pl.models.backbones.text_store import TextStore


class Encoder:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[float(len(text)), float(sum(map(ord, text)))] for text in texts])


def test_every_text_is_encoded_once_for_all_processes(tmp_path: Path) -> None:
    texts, first, second = ["dog", "park bench", "dog"], Encoder(), Encoder()
    expected = Encoder()(texts)
    store = TextStore(tmp_path, "clip")
    assert torch.equal(store.embed(texts, first), expected)
    assert first.asked == ["dog", "park bench"]
    again = TextStore(tmp_path, "clip")  # as another process would
    assert torch.equal(again.embed(texts, second), expected)
    assert second.asked == []
    assert torch.equal(again.embed(["cat", "dog"], second), Encoder()(["cat", "dog"]))
    assert second.asked == ["cat"]
    third = Encoder()
    assert torch.equal(
        TextStore(tmp_path, "clip").embed(["cat", "park bench"], third), Encoder()(["cat", "park bench"])
    )
    assert third.asked == []


def test_models_do_not_share(tmp_path: Path) -> None:
    encoder = Encoder()
    TextStore(tmp_path, "one").embed(["dog"], encoder)
    TextStore(tmp_path, "two").embed(["dog"], encoder)
    assert encoder.asked == ["dog", "dog"]


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_a_damaged_file_is_written_anew(tmp_path: Path, content: bytes) -> None:
    TextStore(tmp_path, "clip").embed(["dog"], Encoder())
    (path,) = (tmp_path / "clip").iterdir()
    path.write_bytes(content)
    encoder = Encoder()
    assert TextStore(tmp_path, "clip").embed(["dog"], encoder).shape == (1, 2)
    assert encoder.asked == ["dog"]
    assert TextStore(tmp_path, "clip").embed(["dog"], encoder).shape == (1, 2)
    assert encoder.asked == ["dog"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("odise_pl.models.backbones.text_store.save_file", full)
    with pytest.raises(OSError, match="no space"):
        TextStore(tmp_path, "clip").embed(["dog"], Encoder())
    assert list((tmp_path / "clip").iterdir()) == []


def test_the_fingerprint_follows_the_text_encoder_alone() -> None:
    clip = tiny_models.clip()
    other = deepcopy(clip)
    assert other.text_fingerprint() == clip.text_fingerprint()
    with torch.no_grad():
        other.model.visual.proj += 1
    assert other.text_fingerprint() == clip.text_fingerprint()
    with torch.no_grad():
        other.model.text_projection += 1
    assert other.text_fingerprint() != clip.text_fingerprint()


def test_the_network_keeps_its_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.odise()
    vocabulary = tiny_models.vocabulary(("dog", "puppy"), ("sky",))
    expected = model.prepare(vocabulary, None)
    model.text_store = TextStore(tmp_path, model.clip.text_fingerprint())
    stored = model.prepare(vocabulary, None)
    monkeypatch.setattr(model.clip.model, "encode_text", None)  # nothing is encoded any more
    model.text_store = TextStore(tmp_path, model.clip.text_fingerprint())
    again = model.prepare(vocabulary, None)
    for classes in (stored, again):
        assert classes.mask_text.counts == expected.mask_text.counts == (2, 1)
        torch.testing.assert_close(classes.mask_text.embeddings, expected.mask_text.embeddings)
        torch.testing.assert_close(classes.clip_text.embeddings, expected.clip_text.embeddings)
    assert torch.equal(stored.clip_text.embeddings, again.clip_text.embeddings)
