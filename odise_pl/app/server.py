"""Serve the page."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from odise_pl.app.inputs import MOST_BYTES
from odise_pl.errors import SettingError
from odise_pl.prediction.segmenter import Segmenter

_DEMO = Path("runs/demo")


def serve(checkpoint: Path | None, host: str, port: int | None, device: str) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        checkpoint: see :meth:`Segmenter.from_pretrained`; None: the demo's run.
        host: address to listen on.
        port: None: the first free one from 7860.
        device: see :meth:`Segmenter.from_pretrained`.

    Raises:
        UserError: there is no checkpoint, it cannot be used, Gradio is missing, or the port is in use.
    """
    _check_gradio()
    segmenter = Segmenter.from_pretrained(checkpoint or _demo(), device=device)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are deleted then, too
    with running(segmenter, host, port) as page:
        print(f"the page is at {page.local_url} (stop it with Ctrl-C)", flush=True)
        page.block_thread()


def _check_gradio() -> None:
    if find_spec("gradio") is None:
        raise SettingError("the web page needs Gradio: pip install 'odise_pl[app]'")


def _demo() -> Path:
    if not _DEMO.is_dir():
        raise SettingError(
            f"there is no {_DEMO}; train it in minutes with make demo or odise demo, or name a run, a "
            "checkpoint or an official release: odise app CKPT"
        )
    return _DEMO


@contextmanager
def running(segmenter: Segmenter, host: str = "127.0.0.1", port: int | None = None) -> Iterator[Any]:
    """The page, served in the background; its address is ``local_url``.

    Uploads and results are in a temporary folder, which is removed at the end.

    Raises:
        SettingError: the port is in use, or the host is not an address of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="odise_app_") as folder:
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "GRADIO_TEMP_DIR": folder,
        }
        from odise_pl.app.page import build_page, theme  # Gradio reads the variables when it is imported

        page = build_page(segmenter, Path(folder))
        try:
            page.launch(
                prevent_thread_lock=True,
                quiet=True,
                server_name=host,
                server_port=port,
                theme=theme(),
                max_file_size=MOST_BYTES,
                footer_links=[],
                share=False,
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
            )
        except OSError as error:
            where = f"--host {host} --port {port or '7860 to 7959'}"
            raise SettingError(f"{where}: the port is in use, or this machine has no such address") from error
        try:
            yield page
        finally:
            page.close(verbose=False)
