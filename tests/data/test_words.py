from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import pack
from mini_coco import make_coco
from shard_members import rewrite, unlabel

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.noun_phrases import caption_phrases
from odise_pl.data.records import DataError
from odise_pl.data.words import draw_words
from odise_pl.structures import Batch

CAPTIONS = ("A brown dog runs on the grass.", "Two red balls lie in a box.")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_words_are_phrases_of_one_caption_drawn_with_replacement() -> None:
    own = [set(caption_phrases(caption)) for caption in CAPTIONS]
    seen: set[int] = set()
    for seed in range(20):
        words = draw_words(CAPTIONS, 8, generator(seed))
        assert len(words) == 8
        assert words == draw_words(CAPTIONS, 8, generator(seed))
        (which,) = (i for i, phrases in enumerate(own) if set(words) <= phrases)
        seen.add(which)
    assert seen == {0, 1}


@pytest.mark.parametrize("captions", [(), ("",), ("!?",)])
def test_without_a_phrase_there_are_no_words(captions: tuple[str, ...]) -> None:
    assert draw_words(captions, 8, generator()) == ()


def test_no_words_are_drawn_unless_asked_for() -> None:
    assert draw_words(CAPTIONS, 0, generator()) == ()


@pytest.mark.parametrize(
    "caption",
    ["", " \n\t", "🐶🐱", "dog " * 1000, "一只狗在草地上。", "كلب على العشب", "\x00\ud7ff", "/ // n/a <b>{}"],
)
def test_any_text_is_a_caption(caption: str) -> None:
    assert len(draw_words((caption,), 8, generator())) in (0, 8)


# --- in the stream ----------------------------------------------------------------------------------------


def data(folder: Path, **options: object) -> PanopticDataModule:
    defaults = {"batch_size": 2, "num_workers": 0, "image_size": 32, "eval_short_side": 32, "words": 8}
    return PanopticDataModule(train=str(folder), val=str(folder), **(defaults | options))  # type: ignore[arg-type]


def test_training_batches_carry_words_and_evaluation_none(shards: Path) -> None:
    batches = list(data(shards).train_dataloader())
    for batch in batches:
        assert all(len(words) == 8 for words in batch.words)
        assert batch.labelled == (True, True)
    assert all(words == () for batch in data(shards).val_dataloader() for words in batch.words)
    assert all(words == () for batch in data(shards, words=0).train_dataloader() for words in batch.words)


def test_words_do_not_change_augmentation_and_come_again_on_resuming(shards: Path) -> None:
    batches = list(data(shards).train_dataloader())
    for batch, other in zip(batches, data(shards, words=0).train_dataloader(), strict=True):
        assert (batch.images == other.images).all()
    resumed = data(shards)
    resumed.set_position(0, 4)
    assert [b.words for b in resumed.train_dataloader()] == [b.words for b in batches[4:]]


def test_a_negative_number_of_words_is_refused(shards: Path) -> None:
    with pytest.raises(DataError, match=r"data\.words is -1"):
        data(shards, words=-1)


# --- images without labels --------------------------------------------------------------------------------


@pytest.fixture
def half_labelled(tmp_path: Path) -> Path:
    coco = make_coco(tmp_path / "coco", 2)
    assert pack(coco.root, tmp_path / "out") == 0
    (shard,) = (tmp_path / "out").glob("*.tar")
    unlabel(shard, "1")
    return tmp_path / "out"


def by_id(batches: list[Batch]) -> dict[int, tuple[bool, int, int]]:
    return {
        image: (labelled, len(targets.labels), len(words))
        for b in batches
        for image, labelled, targets, words in zip(b.image_ids, b.labelled, b.targets, b.words, strict=True)
    }


def test_an_image_without_segments_trains_as_unlabelled(half_labelled: Path) -> None:
    found = by_id(list(data(half_labelled, augment="none").train_dataloader()))
    assert found == {1: (False, 0, 8), 2: (True, 2, 8)}


def test_an_image_without_segments_is_left_out_of_evaluation(half_labelled: Path) -> None:
    batches = list(data(half_labelled).val_dataloader())
    assert [b.image_ids for b in batches if len(b)] == [(2,)]
    assert any("no labels" in text for b in batches for text in b.skipped)


def test_labels_without_their_map_are_damage(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", 3)
    assert pack(coco.root, tmp_path / "out") == 0
    (shard,) = (tmp_path / "out").glob("*.tar")
    rewrite(shard, lambda name, content: None if name.endswith("1.panoptic.png") else content)
    batches = list(data(tmp_path / "out").val_dataloader())
    assert [b.image_ids for b in batches if len(b)] == [(2,), (3,)]
    assert "member panoptic.png is missing" in batches[0].skipped[0]
