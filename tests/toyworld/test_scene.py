from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from odise_pl.toyworld.captions import write_captions
from odise_pl.toyworld.scene import Scene, paint_scene
from odise_pl.toyworld.shapes import outline
from odise_pl.toyworld.stuff import STUFF
from odise_pl.toyworld.style import OPEN, PLAIN, Style
from odise_pl.toyworld.things import COLOURS, THINGS


def scenes(style: Style, count: int, novel: bool = True) -> list[Scene]:
    random = np.random.default_rng(0)
    return [paint_scene(random, style, novel) for _ in range(count)]


def test_category_names_are_unique() -> None:
    names = [name for kind in (*THINGS, *STUFF) for name in (kind.name, *kind.synonyms)]
    assert len(names) == len(set(names))


def test_drawings_stay_in_their_frame() -> None:
    for shape, paint, numbers in (part for thing in THINGS for part in thing.parts):
        assert np.abs(outline(shape, numbers)).max() <= 1.1
        assert isinstance(paint, float) or paint in COLOURS


@pytest.mark.parametrize("style", [OPEN, replace(PLAIN, close_up=0.5)])
def test_maps_agree_with_pictures(style: Style) -> None:
    for scene in scenes(style, 20):
        assert scene.image.shape == (*scene.ids.shape, 3)
        assert all(style.sides[0] <= side <= style.sides[1] for side in scene.ids.shape)
        named = {number for number, _ in scene.stuff} | {placed.id for placed in scene.things}
        assert set(np.unique(scene.ids).tolist()) - {0} == named
        for placed in scene.things:
            rows, columns = np.nonzero(scene.ids == placed.id)
            left, top, right, bottom = placed.box
            # rotated things exceed their box by less than half of it
            reach = 0.45 * max(right - left, bottom - top) + 2
            assert columns.min() >= left - reach
            assert columns.max() <= right + reach
            assert rows.min() >= top - reach
            assert rows.max() <= bottom + reach


def test_novel_categories_occur_only_where_allowed() -> None:
    seen = {kind for scene in scenes(OPEN, 150) for kind in kinds(scene)}
    assert seen == {kind.name for kind in (*THINGS, *STUFF)}
    novel = {kind.name for kind in (*THINGS, *STUFF) if kind.novel}
    for scene in scenes(PLAIN, 50, novel=False):
        assert novel.isdisjoint(kinds(scene))


def kinds(scene: Scene) -> list[str]:
    return [placed.thing.name for placed in scene.things] + [stuff.name for _, stuff in scene.stuff]


def test_open_set_is_darker_and_paler() -> None:
    plain, open_ = ([scene.image for scene in scenes(style, 30)] for style in (PLAIN, OPEN))
    assert np.mean([image.mean() for image in open_]) < np.mean([image.mean() for image in plain])
    saturation = [np.mean([np.ptp(image, axis=2).mean() for image in images]) for images in (open_, plain)]
    assert saturation[0] < saturation[1]


def test_things_have_their_named_colour() -> None:
    apples = [
        (scene, placed)
        for scene in scenes(PLAIN, 200)
        for placed in scene.things
        if placed.thing.name == "apple" and (scene.ids == placed.id).sum() > 200
    ]
    assert {placed.colour for _, placed in apples} == {"red", "green", "yellow"}
    for scene, placed in apples:
        seen = np.median(scene.image[scene.ids == placed.id], axis=0)
        distance = {name: np.abs(seen - COLOURS[name]).sum() for name in placed.thing.colours}
        assert min(distance, key=distance.__getitem__) == placed.colour


def test_captions_name_visible_categories() -> None:
    random = np.random.default_rng(3)
    texts = set()
    for scene in scenes(OPEN, 60):
        known = [
            name
            for kind in (*(p.thing for p in scene.things), *(stuff for _, stuff in scene.stuff))
            for name in (kind.name, getattr(kind, "many", kind.name), *kind.synonyms)
        ]
        for caption in write_captions(scene, random, 5):
            assert any(name in caption.lower() for name in known), caption
            texts.add(caption)
    assert len(texts) > 250  # of 300: in many phrasings


def test_captions_state_true_relations() -> None:
    random = np.random.default_rng(4)
    checked = 0
    for scene in scenes(PLAIN, 200):
        if len(scene.things) != 2 or scene.things[0].thing == scene.things[1].thing:
            continue
        by_name = {n: p for p in scene.things for n in (p.thing.name, *p.thing.synonyms)}
        for caption in write_captions(scene, random, 5):
            before, found, after = caption.rstrip(".").partition(" to the left of ")
            if found:
                first, second = (
                    by_name[max((n for n in by_name if part.endswith(n)), key=len)]
                    for part in (before, after)
                )
                assert first.centre[0] < second.centre[0]
                checked += 1
    assert checked >= 5
