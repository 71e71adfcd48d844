"""Zero-shot splits: the packaged lists of classes, and training without the labels of some."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_stream import data, evaluated, train

from odise_pl.runs.conf import CONF
from odise_pl.vocabulary import VocabularyError, load_vocabulary, seen_classes

# vocabulary of the data of each split, and the ids of the unseen classes: values of the label files
PACKAGED = {
    "voc15": ("pascal_voc_20", {16, 17, 18, 19, 20}),
    "voc10": ("pascal_voc_21", {10, 14, 1, 18, 8, 20, 19, 5, 9, 16}),
    "context49": ("pascal_context_59", {20, 34, 49, 15, 8, 25, 7, 55, 32, 1}),
    "coco_stuff156": (
        "coco_stuff_171",
        {20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171},
    ),
    **{f"pascal5i_{i}": ("pascal_voc_21", set(range(5 * i + 1, 5 * i + 6))) for i in range(4)},
}


def test_classes_that_share_a_name_are_unseen_together() -> None:
    vocabulary = load_vocabulary(["stool,seat", "toilet,stool", "sofa"])
    with pytest.raises(VocabularyError, match="shares a name"):
        seen_classes(load_vocabulary(["a,b", "b,c", "d"]), ["a"])
    assert seen_classes(vocabulary, ["stool"]) == (2,)


def test_every_split_is_tested() -> None:
    assert {path.stem for path in CONF.glob("split/*.yaml")} == PACKAGED.keys()


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_split_has_the_published_classes(name: str) -> None:
    source, unseen = PACKAGED[name]
    vocabulary = load_vocabulary(source)
    kept = seen_classes(vocabulary, OmegaConf.load(CONF / "split" / f"{name}.yaml").unseen)
    seen = vocabulary.select(kept)
    assert {c.id for c in vocabulary.categories} - {c.id for c in seen.categories} == unseen
    # so that evaluation, which compares names, finds the same groups
    assert [i for i, flag in enumerate(vocabulary.overlap(seen)) if flag] == list(kept)


@pytest.mark.parametrize("names", [["Sofa", "chesterfield"], "sofa", ["couch"], "[sofa]", ["couch,sofa"]])
def test_classes_match_by_any_of_their_names(names: object) -> None:
    vocabulary = load_vocabulary(["dog", "couch,sofa,chesterfield", "potted  plant"])
    assert seen_classes(vocabulary, names) == (0, 2)


@pytest.mark.parametrize(
    ("names", "named"), [(["dog", "horse", "cow"], "horse, cow"), (["dog", "cat"], "no other"), ([], "no cl")]
)
def test_impossible_split_is_named(names: list[str], named: str) -> None:
    with pytest.raises(VocabularyError, match=named):
        seen_classes(load_vocabulary(["dog", "cat"]), names)


def test_unseen_classes_lose_their_labels_in_training_alone(shards: Path) -> None:
    """The square is unseen: the ground, class 2, becomes class 1; images and their order stay."""
    whole, split = data(shards), data(shards, unseen=["square"])
    assert split.seen_vocabulary().names == ("disc", "ground")
    assert split.seen_vocabulary("train", ["a", "b", "c:stuff"]).names == ("b", "c")
    assert whole.seen_vocabulary() == split.vocabulary() == whole.vocabulary()
    squares = 0
    for before, after in zip(train(whole), train(split), strict=True):
        assert torch.equal(before.images, after.images)
        assert before.labelled == after.labelled == (True, True)
        for old, new in zip(before.targets, after.targets, strict=True):
            kept = [i for i, label in enumerate(old.labels.tolist()) if label != 0]
            squares += len(old.labels) - len(kept)
            assert new.labels.tolist() == [1] * len(kept)
            assert torch.equal(new.masks, old.masks[kept])
    assert squares > 0
    for before, after in zip(evaluated(whole), evaluated(split), strict=True):
        assert [t and t.panoptic.segments for t in before.truths] == [
            t and t.panoptic.segments for t in after.truths
        ]
