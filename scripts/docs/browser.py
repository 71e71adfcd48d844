"""Pictures that only a browser can take: TensorBoard's page of a run, and the page of ``odise app``."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from odise_pl.errors import UserError
from scripts.docs.style import save_png

if TYPE_CHECKING:
    from odise_pl import Segmenter

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_TAGS = "^train/loss$|^lr-MuonAdamW/pg1$|/pq$"
_WINDOW = (1040, 764)  # CSS pixels: two columns of two curves
_DENSITY = 1.6


def find_browser() -> str:
    """Path of Chromium.

    Raises:
        UserError: there is none.
    """
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise UserError("Chromium is not installed; it takes the pictures of pages: apt install chromium")
    return found


def take_tensorboard(run: Path, folder: Path) -> Path:
    """Write tensorboard.png, the scalars of a run as TensorBoard shows them."""
    query = f"?darkMode=false#scalars&_smoothingWeight=0.3&tagFilter={quote(_TAGS, safe='')}"
    with _tensorboard(run) as address:
        page = _screenshot(find_browser(), address + query)
    return save_png(page, folder / "tensorboard.png", colours=96)


@contextmanager
def _tensorboard(run: Path) -> Iterator[str]:
    """TensorBoard on a free port of this machine; gives its address."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--logdir={run.parent.name}",
        "--host=127.0.0.1",
        "--port=0",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=run.parent.parent
    ) as server:
        try:
            assert server.stderr is not None
            lines = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stderr)
            address = next(filter(None, lines), None)
            if address is None:
                raise UserError("TensorBoard did not start: try tensorboard --logdir runs")
            yield address.group()
        finally:
            server.terminate()


def _screenshot(browser: str, address: str) -> Image.Image:
    """A page, once it has had the time to load its data and draw."""
    with TemporaryDirectory() as folder:
        target = Path(folder, "page.png")
        options = [
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--disable-gpu",
            "--disable-3d-apis",  # TensorBoard then draws curves as SVG, which screenshots show
            f"--force-device-scale-factor={_DENSITY}",
            f"--user-data-dir={folder}/profile",
            f"--window-size={_WINDOW[0]},{_WINDOW[1]}",
            "--virtual-time-budget=30000",
            f"--screenshot={target}",
        ]
        done = subprocess.run([browser, *options, address], capture_output=True, text=True, timeout=300)
        if not target.is_file():
            raise UserError(f"{browser} took no picture of {address}:\n{done.stderr[-2000:]}")
        return Image.open(io.BytesIO(target.read_bytes())).convert("RGB")


def take_app(segmenter: Segmenter, picture: Path, words: str, folder: Path) -> Path:
    """Write app.png, the page of ``odise app`` with a picture, its words and the segments found."""
    from odise_pl.app.server import running

    with running(segmenter) as app, open_page(app.local_url) as page:
        return save_app(page, picture, words, folder)


def save_app(page: Page, picture: Path, words: str, folder: Path) -> Path:
    """:func:`take_app` on an open page, whose result is left to be used."""
    segment_in_page(page, picture, words)
    page.get_by_role("button", name="Settings").click()
    page.locator(".viewer svg").hover()
    page.wait_for_timeout(500)  # of animations
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return save_png(shown, folder / "app.png", colours=128)


def segment_in_page(page: Page, picture: Path, words: str) -> None:
    """Upload a picture, type words, press the button and wait for the result."""
    page.locator("input[type=file]").first.set_input_files(picture)
    page.get_by_label("Words").fill(words)
    page.get_by_role("button", name="Segment", exact=True).click()
    page.locator(".viewer svg").wait_for()


@contextmanager
def open_page(address: str) -> Iterator[Page]:
    """A page in Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        try:
            page = browser.new_page(
                viewport={"width": 1180, "height": 900}, device_scale_factor=1.25, accept_downloads=True
            )
            page.goto(address)
            yield page
        finally:
            browser.close()
