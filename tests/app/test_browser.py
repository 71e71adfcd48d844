"""The page in a real browser: upload, words, segments, thresholds, downloads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect

from odise_pl import Segmenter
from odise_pl.app.server import running
from odise_pl.data.label_maps import decode_ids
from scripts.docs.browser import open_page, save_app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium: apt install chromium"),
]
EXAMPLE = Path(__file__).parents[2] / "docs" / "images" / "example.png"
WORDS = "rocket, bird, tree, sky:stuff, sea:stuff, grass:stuff"


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> Segmenter:
    """Finds some segments, by noise on its head."""
    segmenter = Segmenter.from_pretrained(
        checkpoint, {"model.inference.overlap_threshold": 0.0}, device="cpu"
    )
    generator = torch.Generator().manual_seed(0)
    for head in (segmenter.model.mask_decoder, segmenter.model.text_projection):
        for weight in head.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return segmenter


@pytest.fixture
def page(segmenter: Segmenter) -> Iterator[Page]:
    with running(segmenter) as app, open_page(app.local_url) as page:
        yield page


def test_visitor_segments_a_picture(page: Page, segmenter: Segmenter, tmp_path: Path) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.reload()  # so that all are seen
    picture = save_app(page, EXAMPLE, WORDS, tmp_path)
    assert picture.stat().st_size < 150_000

    expected = segmenter(EXAMPLE, WORDS.split(", ")).segments
    rows = page.locator(".viewer tbody tr")
    expect(rows).to_have_count(len(expected))
    assert expected, "the network finds something"
    largest = max(expected, key=lambda segment: segment.area)
    expect(rows.first).to_contain_text(largest.name)
    expect(rows.first).to_contain_text(f"{largest.score:.2f}")

    shape = page.locator(f".viewer path.s{largest.id}")
    rows.first.locator("input").uncheck()
    expect(shape).to_be_hidden()
    rows.first.locator("input").check()
    expect(shape).to_be_visible()

    files = {}
    for link in page.locator("a[download]").all():
        with page.expect_download() as download:
            link.click()
        name = download.value.suggested_filename
        files[name] = tmp_path / name
        download.value.save_as(files[name])
    assert Image.open(files["example_segments.png"]).size == Image.open(EXAMPLE).size
    (annotation,) = json.loads(files["example_coco.json"].read_text())["annotations"]
    ids = decode_ids(files["example_ids.png"].read_bytes())
    for segment in annotation["segments_info"]:
        assert segment["area"] == (ids == segment["id"]).sum()

    threshold = page.get_by_label("number input for Object threshold")
    threshold.fill("1")
    threshold.press("Tab")
    expect(page.locator(".viewer")).to_contain_text("No segment")

    loopback = ("http://127.0.0.1:", "data:", "blob:")
    assert [url for url in requests if not url.startswith(loopback)] == []
    assert len(requests) > 10


def test_error_is_shown_and_the_page_lives_on(page: Page, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "text.jpg")
    page.get_by_label("Words").fill("rocket")
    button = page.get_by_role("button", name="Segment", exact=True)
    button.click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("text.jpg")
    page.get_by_role("button", name="Clear").or_(page.get_by_title("Clear")).first.click()
    page.locator("input[type=file]").first.set_input_files(EXAMPLE)
    button.click()
    expect(page.locator(".viewer svg")).to_be_visible()
