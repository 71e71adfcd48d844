"""Segmentation of images by free vocabulary, in Python."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hotcoco.panoptic import PanopticEval
from PIL import Image
from pycocotools.coco import COCO

from odise_pl.checkpoints.weights import export_official
from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.images import read_image
from odise_pl.data.records import DataError
from odise_pl.data.transforms import image_tensor
from odise_pl.errors import UserError
from odise_pl.evaluation.predictors import NetworkPredictor
from odise_pl.models.odise import Odise
from odise_pl.prediction import segmenter as segmenter_module
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.vocabulary import load_vocabulary

EVERYTHING = {"model.inference.overlap_threshold": 0.0}  # keep all segments
NAMES = ["ball", "wooden box", "sky:stuff", "field,meadow:stuff", "zebra"]


def test_segmenter_equals_evaluation(segmenter: Segmenter, scene_shards: Path, photos: list[Path]) -> None:
    vocabulary = load_vocabulary(NAMES)
    predictor = NetworkPredictor(segmenter.model, vocabulary, segmenter.training)
    data = PanopticDataModule(
        val=str(scene_shards), num_workers=0, eval_short_side=64, eval_long_side=96, eval_batch_size=1
    )
    found = 0
    for batch in list(data.eval_loader("val"))[:3]:
        (expected,) = predictor(batch)
        (photo,) = (path for path in photos if path.stem == batch.keys[0])
        prediction = segmenter(photo, NAMES).prediction
        assert torch.equal(prediction.panoptic.ids, expected.panoptic.ids)
        assert torch.equal(prediction.semantic, expected.semantic)
        assert prediction.panoptic.segments == expected.panoptic.segments
        found += len(expected.panoptic.segments)
    assert found, "the network finds something"


def test_images_of_all_kinds_give_one_result(segmenter: Segmenter, photos: list[Path]) -> None:
    image = read_image(photos[0])
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = (photos[0], str(photos[0]), image, array, tensor, tensor / 255, (tensor / 255).double())
    found = [segmenter(kind, NAMES) for kind in kinds]
    assert found[0].segments
    for result in found:
        assert result.segments == found[0].segments
        assert np.array_equal(result.ids, found[0].ids)
        assert result.plot().tobytes() == found[0].plot().tobytes()
    for segment in found[0].segments:
        rows, columns = np.nonzero(found[0].ids == segment.id)
        x, y, width, height = segment.box
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert segment.area == len(rows) == segment.mask.sum()
        assert segment.isthing == (segment.name not in ("sky", "field"))


def test_grey_array_is_a_grey_image(segmenter: Segmenter, photos: list[Path]) -> None:
    grey = read_image(photos[0]).convert("L")
    one, other = segmenter(np.asarray(grey), NAMES), segmenter(grey.convert("RGB"), NAMES)
    assert np.array_equal(one.ids, other.ids)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), torch.zeros(2, 3, 8, 8), None, ("a.jpg",)]
)
def test_other_images_are_refused(segmenter: Segmenter, image: Any) -> None:
    with pytest.raises(TypeError, match=r"uint8 array \[H, W, 3\]"):
        segmenter(image, NAMES)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (torch.full((3, 8, 8), 2.0), "from 2 to 2"),
        (torch.full((3, 8, 8), torch.nan), "0..1"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        ("nothing.jpg", "nothing.jpg"),
        (__file__, "test_segmenter.py cannot be read as an image"),
    ],
)
def test_unreadable_images_are_named(segmenter: Segmenter, image: Any, word: str) -> None:
    for given in (image, [image]):
        with pytest.raises(DataError, match=re.escape(word)):
            segmenter(given, NAMES)


@pytest.mark.parametrize("release", [False, True])
def test_batch_equals_single_images(
    segmenter: Segmenter, photos: list[Path], release: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In double precision, because this network amplifies rounding; equal canvases share a pass.

    Masked CLIP of the release depends on the largest image of a pass.
    """
    model = copy.deepcopy(segmenter.model).double()
    model.published_quirks = release
    precise = replace(segmenter, model=model)
    monkeypatch.setattr(segmenter_module, "image_tensor", lambda image: image_tensor(image).double())
    passes, decode = list[int](), Odise.decode
    monkeypatch.setattr(Odise, "decode", lambda m, x, c: passes.append(len(x)) or decode(m, x, c))
    images = [read_image(photo) for photo in photos[:3]]
    images += [images[0].crop((0, 0, *size)) for size in ((60, 40), (60, 38), (40, 60))]
    together = precise(images, NAMES)
    assert passes == ([3, 1, 1, 1] if release else [3, 2, 1])
    for image, found in zip(images, together, strict=True):
        alone = precise(image, NAMES)
        assert found.image.size == image.size
        assert np.array_equal(found.ids, alone.ids)
        assert np.array_equal(found.semantic, alone.semantic)
        scores = [[x.score for x in (*result.segments, *result.instances)] for result in (found, alone)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert precise([], NAMES) == []


def test_background_words_have_no_segments(segmenter: Segmenter, photos: list[Path]) -> None:
    full = segmenter(photos[0], NAMES)
    (name, *_) = {segment.name for segment in full.segments}
    listed = [entry for entry in NAMES if not entry.startswith(name)]
    other = [entry for entry in NAMES if entry.startswith(name)]
    found = segmenter(photos[0], listed, other=other)
    kept = [segment for segment in full.segments if segment.name != name]
    assert [(s.name, s.area, s.box) for s in found.segments] == [(s.name, s.area, s.box) for s in kept]
    assert found.vocabulary.names == load_vocabulary(listed).names
    void = np.isin(full.ids, [segment.id for segment in kept], invert=True)
    assert np.array_equal(found.ids == 0, void)
    names = np.array([*full.vocabulary.names])
    assert np.array_equal(found.semantic == -1, names[full.semantic] == name)
    assert len(found.instances) == sum(instance.name != name for instance in full.instances)
    assert len(found.to_coco().instances) == len(found.instances)
    with pytest.raises(UserError, match="'ball'"):
        segmenter(photos[0], NAMES, other="ball")


def test_settings_of_a_call_equal_those_of_the_network(
    segmenter: Segmenter, network: Path, photos: list[Path]
) -> None:
    settings = {"model.inference.object_threshold": 0.2, "model.inference.overlap_threshold": 0.5}
    settings |= {"classifier.mode": "diffusion"}
    expected = Segmenter.from_pretrained(network, settings)(photos[0], NAMES)
    before = segmenter(photos[0], NAMES)
    found = segmenter(photos[0], NAMES, object_threshold=0.2, overlap_threshold=0.5, classifier="diffusion")
    assert found.segments == expected.segments != before.segments
    assert np.array_equal(found.ids, expected.ids)
    assert segmenter(photos[0], NAMES).segments == before.segments, "the network keeps its own"
    for options in ({"object_threshold": 2}, {"overlap_threshold": -1}, {"classifier": "nonsense"}):
        (key,) = options
        with pytest.raises(UserError, match=key):
            segmenter(photos[0], NAMES, **options)  # type: ignore[call-overload]


def test_threads_share_a_segmenter(segmenter: Segmenter, photos: list[Path]) -> None:
    calls = [(NAMES, 0.5), (["ball", "zebra"], 0.0), (NAMES, 0.0)] * 2

    def found(call: tuple[list[str], float]) -> Any:
        return segmenter(photos[0], call[0], overlap_threshold=call[1]).segments

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(found, calls)) == [found(call) for call in calls]


def test_templates_are_averaged_for_masked_clip(
    segmenter: Segmenter, network: Path, photos: list[Path]
) -> None:
    drawing = Segmenter.from_pretrained(network, {"fusion.clip_prompt": "a drawing of {}"} | EVERYTHING)
    expected = drawing(photos[0], NAMES, classifier="discriminative")
    for templates in ("a drawing of {}", ["a drawing of {}"], ["a drawing of {}"] * 2):
        found = segmenter(photos[0], NAMES, templates=templates, classifier="discriminative")
        assert [s.name for s in found.segments] == [s.name for s in expected.segments]
        scores = [s.score for s in found.segments]
        assert scores == pytest.approx([s.score for s in expected.segments], abs=1e-4)
    mixed = segmenter(photos[0], NAMES, templates=["a drawing of {}", "x {} y"], classifier="discriminative")
    assert [s.score for s in mixed.segments] != scores
    with pytest.raises(UserError, match="templates: 'no place'"):
        segmenter(photos[0], NAMES, templates="no place")


def test_bfloat16_is_close(segmenter: Segmenter, network: Path, photos: list[Path]) -> None:
    fast = Segmenter.from_pretrained(network, EVERYTHING, dtype="bfloat16")
    (low,), full = fast(photos[:1], NAMES), segmenter(photos[0], NAMES)
    scores = [found.prediction.best[1] for found in (low, full)]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    assert scores[0] != scores[1]
    assert (low.semantic == full.semantic).mean() > 0.7
    with pytest.raises(UserError, match="dtype float16"):
        Segmenter.from_pretrained(network, dtype="float16")


def test_results_are_valid_for_coco(segmenter: Segmenter, photos: list[Path], tmp_path: Path) -> None:
    """hotcoco follows panopticapi; a prediction compared with itself is perfect."""
    result = segmenter(photos[0], NAMES)
    panoptic, instances = result.to_coco(7, photos[0].name)
    result.save(tmp_path / "panoptic", photos[0].stem)
    with pytest.raises(UserError, match=r"\.\./outside"):
        result.save(tmp_path / "panoptic", "../outside")
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    evaluation = PanopticEval(tmp_path / "panoptic.json", tmp_path / "panoptic.json")
    evaluation.evaluate()
    assert evaluation.results()["All"]["pq"] == 1
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = panoptic | {"annotations": []}
        truth.createIndex()
        loaded = truth.loadRes(json.loads(json.dumps(instances)))
    annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[7]))
    assert len(annotations) == len(result.instances) > 0
    masks = {(a["score"], loaded.annToMask(a).tobytes(), tuple(map(int, a["bbox"]))) for a in annotations}
    assert masks == {(i.score, i.mask.tobytes(), i.box) for i in result.instances}
    assert all(i.area == i.mask.sum() for i in result.instances)
    assert [i.score for i in result.instances] == sorted((i.score for i in result.instances), reverse=True)


def test_detections_of_supervision_are_the_segments(
    segmenter: Segmenter, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = segmenter(photos[0], NAMES)
    found = result.to_supervision()
    assert found["class_name"].tolist() == [s.name for s in result.segments]
    fields = (found.xyxy, found.mask, found.confidence, found.class_id)
    for segment, box, mask, score, label in zip(result.segments, *fields, strict=True):
        assert np.array_equal(mask, segment.mask)
        assert score == pytest.approx(segment.score)
        assert result.vocabulary.names[label] == segment.name
        x, y, width, height = segment.box
        assert box.tolist() == [x, y, x + width, y + height]
    assert len(segmenter(photos[0], NAMES, object_threshold=1).to_supervision()) == 0
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r"odise_pl\[formats\]"):
        result.to_supervision()


def test_wrong_words_are_named(segmenter: Segmenter, photos: list[Path]) -> None:
    for words, message in (([], "no classes"), ("", "no classes"), ("toy_vocab", "coco_panoptic")):
        with pytest.raises(UserError, match=message):
            segmenter(photos[0], words)
    assert segmenter(photos[0], ["toy_vocab"]).vocabulary.names == ("toy_vocab",)


def test_two_thousand_words(segmenter: Segmenter, photos: list[Path]) -> None:
    result = segmenter(photos[0], [f"word {number}" for number in range(2000)])
    assert int(result.semantic.max()) < 2000
    assert len(result.instances) <= 100


@pytest.mark.parametrize("name", ["photo.jpg", "text.ckpt", "weights.pth"])
def test_wrong_checkpoints_are_named(name: str, photos: list[Path], tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "weights.pth":
        torch.save({"conv.weight": torch.zeros(1)}, path)
    else:
        path.write_bytes(photos[0].read_bytes() if name == "photo.jpg" else b"hello")
    with pytest.raises(UserError, match=re.escape(name)):
        Segmenter.from_pretrained(path)


def test_loading_shows_no_progress_bar(network: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    Segmenter.from_pretrained(network)
    assert "Loading" not in "".join(capfd.readouterr())
    assert logging.is_progress_bar_enabled()


def test_run_folder_means_its_newest_checkpoint(segmenter: Segmenter, network: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoints"):
        Segmenter.from_pretrained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for step in (1, 2):
        (tmp_path / "checkpoints" / f"step_{step}.ckpt").symlink_to(network)
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to("step_2.ckpt")
    found = Segmenter.from_pretrained(str(tmp_path)).model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in segmenter.model.state_dict().items())


def test_official_release_selects_the_published_model(network: Path, tmp_path: Path) -> None:
    export_official(network, tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"sd-v1-3\.ckpt"):  # its weights, which are missing here
        Segmenter.from_pretrained(tmp_path / "official.pth")


def test_segmenter_rotates_files_by_exif(segmenter: Segmenter, photos: list[Path], tmp_path: Path) -> None:
    image = Image.open(photos[0]).crop((0, 0, 60, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "phone.png", exif=exif)
    one = segmenter(Image.open(tmp_path / "phone.png"), NAMES)
    other = segmenter(tmp_path / "phone.png", NAMES)
    assert one.ids.shape == (60, 40)
    assert np.array_equal(one.ids, other.ids)
    assert one.segments == other.segments


def test_name_embeddings_are_cached(
    network: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, image, counts = Segmenter.from_pretrained(network), read_image(photos[0]), list[int]()
    encode = Odise.encode_classes
    monkeypatch.setattr(
        Odise, "encode_classes", lambda model, x, *rest: counts.append(len(x)) or encode(model, x, *rest)
    )
    for names in (NAMES, NAMES, ["ball", "box"], NAMES):
        assert int(segmenter(image, names).prediction.semantic.max()) < len(names)
    assert counts == [5, 5, 2, 2, 5, 5], "for the mask embeddings and for masked CLIP"
