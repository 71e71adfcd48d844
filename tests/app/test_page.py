"""The page without a browser."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path
from threading import Event, Timer
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from stand_in import SCORE, StandIn
from typer.testing import CliRunner

from odise_pl.app import server
from odise_pl.app.examples import paint_examples
from odise_pl.app.inputs import read_words
from odise_pl.app.page import Worker
from odise_pl.app.server import running, serve
from odise_pl.app.viewer import render
from odise_pl.cli import app
from odise_pl.data.label_maps import decode_ids
from odise_pl.errors import UserError
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.toyworld.make import vocabulary


@pytest.fixture
def network() -> Any:
    return StandIn()


@pytest.fixture
def upload(tmp_path: Path) -> dict[str, str]:
    Image.new("RGB", (40, 20)).save(tmp_path / "photo.jpg")
    return {"path": str(tmp_path / "photo.jpg")}


def test_worker_gives_html_and_coco_files(network: Any, upload: dict[str, str], tmp_path: Path) -> None:
    shown, files = Worker(network, tmp_path).segment(upload, "grass:stuff, dog", 0.1, 0.5, "diffusion")
    assert network.seen == [(0.5, "diffusion")]
    for text in ("grass", f"{SCORE:.2f}", "50.0%", "<svg", 'type="checkbox"'):
        assert text in shown
    names = [Path(file).name for file in files]
    assert names == ["photo_segments.png", "photo_ids.png", "photo_coco.json"]
    assert Image.open(files[0]).size == (40, 20)
    coco = json.loads(Path(files[2]).read_text())
    ids = decode_ids(Path(files[1]).read_bytes())
    ((segment,),) = (annotation["segments_info"] for annotation in coco["annotations"])
    assert segment["area"] == (ids == segment["id"]).sum() == 400
    assert coco["images"] == [{"id": 0, "file_name": "photo.jpg", "width": 40, "height": 20}]
    assert coco["categories"] == [
        {"id": 0, "name": "grass", "isthing": 0},
        {"id": 1, "name": "dog", "isthing": 1},
    ]


def test_thresholds_reach_the_network(network: Any, upload: dict[str, str], tmp_path: Path) -> None:
    shown, _ = Worker(network, tmp_path).segment(upload, "dog", 0.9, 0.8, "both")
    assert "No segment" in shown
    assert f"{SCORE:.2f} (dog)" in shown


def test_controls_alone_segment_nothing(network: Any, upload: dict[str, str], tmp_path: Path) -> None:
    worker = Worker(network, tmp_path)
    worker.again(None, "dog", 0, 0, "both")
    worker.again(upload, " ", 0, 0, "both")
    assert network.seen == []
    assert "dog" in worker.again(upload, "dog", 0, 0, "both")[0]


def test_errors_are_shown_as_text(network: Any, upload: dict[str, str], tmp_path: Path) -> None:
    for picture, words, expected in (
        (None, "dog", "no picture"),
        (upload, "", "no words"),
        (upload, "<b>, <B>", "&lt;b&gt;.*same name"),
    ):
        with pytest.raises(gr.Error, match=expected):
            Worker(network, tmp_path).segment(picture, words, 0, 0.8, "both")


def test_names_are_neither_html_nor_templates(network: Any) -> None:
    shown = render(network(Image.new("RGB", (8, 8)), read_words("<img src=x> ${value} {{value}}")))
    assert not any(text in shown for text in ("<img", "${", "{{"))


def test_masks_are_drawn_exactly(network: Any) -> None:
    assert "M0 0H6v1H0zM0 1H6v1H0z" in render(network(Image.new("RGB", (6, 4)), read_words("dog")))


def test_large_pictures_are_reduced_on_the_page(network: Any) -> None:
    shown = render(network(Image.new("RGB", (2560, 10)), read_words("dog")))
    assert 'viewBox="0 0 1280 5"' in shown


def test_examples_are_of_the_networks_world(tmp_path: Path) -> None:
    assert paint_examples(read_words("dog"), tmp_path / "no") == []
    for path, words in paint_examples(vocabulary(novel=False), tmp_path / "toy"):
        assert np.ptp(np.asarray(Image.open(path)))
        assert set(read_words(words).names) <= set(vocabulary(novel=True).names)


class Waiting(StandIn):
    """Waits for a sign before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.sign = Event(), Event()

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        self.asked.set()
        self.sign.wait(60)
        return super().__call__(*arguments, **settings)


def test_page_refuses_more_visitors_than_its_queue_takes() -> None:
    network: Any = Waiting()
    with running(network) as page:
        picture = Path(page.GRADIO_CACHE, "picture.png")
        Image.new("RGB", (8, 8)).save(picture)
        try:
            first = join(page.local_url, picture, 0)
            assert network.asked.wait(30)
            others = [join(page.local_url, picture, number) for number in range(1, 18)]
        finally:
            network.sign.set()
    assert [first, *others] == [200] * 17 + [503], "one is served, sixteen wait"
    assert not picture.exists()


def join(address: str, picture: Path, number: int) -> int:
    """The status of a visitor's request to segment a picture."""
    file = {"path": str(picture), "meta": {"_type": "gradio.FileData"}}
    body = {"fn_index": 0, "session_hash": f"visitor {number}", "data": [file, "dog", 0, 0.8, "both"]}
    request = urllib.request.Request(
        f"{address}gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        return error.code


def test_page_is_local_and_private(network: Any) -> None:
    with running(network) as page:
        assert page.local_url.startswith("http://127.0.0.1:")
        assert not page.analytics_enabled
        assert not page.run_history
        with urllib.request.urlopen(f"{page.local_url}gradio_api/info") as answer:
            assert json.load(answer)["named_endpoints"] == {}


def test_port_in_use_is_named(network: Any) -> None:
    with (
        running(network) as page,
        pytest.raises(UserError, match=f"--port {page.server_port}"),
        running(network, port=page.server_port),
    ):
        pass


def test_sigterm_ends_the_command_and_deletes_uploads(
    network: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: network)
    block = gr.Blocks.block_thread

    def block_until_sigterm(page: gr.Blocks) -> None:
        assert Path(os.environ["GRADIO_TEMP_DIR"]).is_dir()
        Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        block(page)

    monkeypatch.setattr(gr.Blocks, "block_thread", block_until_sigterm)
    before = signal.getsignal(signal.SIGTERM)
    try:
        serve(Path("net.ckpt"), "127.0.0.1", None, "auto")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "http://127.0.0.1:" in capsys.readouterr().out
    assert not Path(os.environ["GRADIO_TEMP_DIR"]).exists()


def test_command_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, words in (([], "make demo"), (["nothing.ckpt"], "nothing.ckpt")):
        done = CliRunner().invoke(app, ["app", *arguments])
        assert isinstance(done.exception, UserError)
        assert words in str(done.exception)
    monkeypatch.setattr(server, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"odise_pl\[app\]"):
        serve(None, "127.0.0.1", None, "auto")
