from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from odise_pl.prediction.drawing import overlay, paint, segment_color, side_by_side
from odise_pl.structures import PanopticSegmentation, Segment


def scene() -> PanopticSegmentation:
    ids = torch.zeros(40, 60, dtype=torch.int32)
    ids[10:, :30], ids[10:, 30:] = 5, 70000
    return PanopticSegmentation(ids, (Segment(5, 0, True), Segment(70000, 1, False)))


def test_segments_are_tinted_and_void_is_unchanged() -> None:
    image = torch.full((3, 20, 30), 0.5)
    picture = overlay(image, scene(), ["cat", "sky"], opacity=1.0)
    assert picture.shape == (40, 60, 3)
    assert (picture[2, 5] == 128).all()
    assert tuple(picture[38, 2]) == segment_color(Segment(5, 0, True))
    assert tuple(picture[38, 58]) == segment_color(Segment(70000, 1, False))
    assert (picture[20, 30] == 255).all()  # the border between them


def test_names_are_written() -> None:
    image = torch.zeros(3, 40, 60)
    assert (overlay(image, scene(), ["cat", "sky"]) != overlay(image, scene(), ["", ""])).any()


def test_labels_do_not_overlap_and_stay_in_the_picture() -> None:
    ids = torch.arange(1, 31, dtype=torch.int32).repeat_interleave(4)[:, None].expand(-1, 50)
    result = PanopticSegmentation(ids, tuple(Segment(i, 0, True) for i in range(1, 31)))
    picture = Image.new("RGB", (50, 120))
    with patch("odise_pl.prediction.drawing._write_label") as write:
        paint(picture, result, ["a word that is wider than the picture"])
    boxes = sorted(call.args[1][1::2] for call in write.call_args_list)  # top and bottom
    assert len(boxes) > 3
    assert boxes[0][0] >= 0
    assert boxes[-1][1] <= 120
    assert all(above[1] <= below[0] for above, below in pairwise(boxes))


def test_classes_differ_in_colour() -> None:
    colours = {segment_color(Segment(1, category, False)) for category in range(133)}
    assert len(colours) > 120


def test_side_by_side_has_a_white_gap() -> None:
    row = side_by_side([np.zeros((4, 3, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], gap=2)
    assert row.shape == (4, 10, 3)
    assert (row[:, 3:5] == 255).all()
