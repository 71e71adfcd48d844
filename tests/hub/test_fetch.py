"""odise weights: downloads resume, are verified, and leave nothing half-written under the final name."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import LARGE, Hub, serve
from typer.testing import CliRunner, Result

from odise_pl.cli import app
from odise_pl.errors import UserError
from odise_pl.hub.weights import WEIGHTS
from odise_pl.runs.conf import CONF

CONTENT = bytes(range(256)) * 8000
CLIP = WEIGHTS["clip"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


# A plain address


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Result]:
    """Fetch the official weights from the server."""
    name = WEIGHTS["label"].target
    hub.files[""] = {name: CONTENT}
    label = replace(
        WEIGHTS["label"], source=f"{hub.url}/{name}", sha256=hashlib.sha256(CONTENT).hexdigest()[:8]
    )
    monkeypatch.setitem(WEIGHTS, "label", label)
    command = ["weights", "fetch", "label", "--folder", str(tmp_path / "weights")]
    return lambda: CliRunner().invoke(app, command)


def message(result: Result) -> str:
    assert isinstance(result.exception, UserError)
    return str(result.exception)


def left(folder: Path) -> list[str]:
    """Files under final names."""
    return [path.name for path in folder.glob("*") if not path.name.startswith(".")]


def test_licence_comes_before_the_file(fetch: Callable[[], Result], hub: Hub, tmp_path: Path) -> None:
    hub.status = 404
    refused = fetch()
    assert "CC BY-NC-SA" in refused.stdout
    assert "404" in message(refused)
    hub.status = None
    assert fetch().exit_code == 0
    (path,) = (tmp_path / "weights").iterdir()
    assert path.name == WEIGHTS["label"].target
    assert path.read_bytes() == CONTENT
    assert "already there" in fetch().stdout
    assert hub.ranges == [None]
    path.write_bytes(CONTENT[:-1])
    assert f"{path} has SHA-256" in message(fetch())


def test_lost_connection_is_resumed(fetch: Callable[[], Result], hub: Hub, tmp_path: Path) -> None:
    hub.cut = 1_500_000
    assert fetch().exit_code == 0
    assert hub.ranges == [None, "bytes=1500000-"]
    assert (tmp_path / "weights" / WEIGHTS["label"].target).read_bytes() == CONTENT


def test_connection_without_data_ends(fetch: Callable[[], Result], hub: Hub, tmp_path: Path) -> None:
    hub.cut = 0
    assert "again to resume" in message(fetch())
    assert not left(tmp_path / "weights")


def test_download_that_was_complete_but_not_renamed_is_kept(
    fetch: Callable[[], Result], hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f".{WEIGHTS['label'].target}.part").write_bytes(CONTENT)
    assert fetch().exit_code == 0
    assert hub.ranges == [f"bytes={len(CONTENT)}-"]
    assert left(tmp_path / "weights") == [WEIGHTS["label"].target]


def test_other_file_is_refused_and_removed(fetch: Callable[[], Result], hub: Hub, tmp_path: Path) -> None:
    hub.files[""][WEIGHTS["label"].target] = CONTENT[::-1]
    assert "SHA-256" in message(fetch())
    assert not list((tmp_path / "weights").iterdir())


def test_server_that_is_away_is_named(
    fetch: Callable[[], Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(WEIGHTS, "label", replace(WEIGHTS["label"], source="http://127.0.0.1:9/x.pth"))
    assert "http://127.0.0.1:9/x.pth" in message(fetch())
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["weights", "fetch", "label", "--folder", str(tmp_path / "file" / "x")])
    assert "--folder" in message(result)
    assert "nothing" in message(CliRunner().invoke(app, ["weights", "fetch", "nothing"]))


# The Hub: its client reads the environment when it is imported


def command(url: str, folder: Path, name: str = "clip") -> tuple[list[str], dict[str, str]]:
    hub = {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "hf"),
    }
    words = [sys.executable, "-m", "odise_pl", "weights", "fetch", name, "--folder", str(folder / "weights")]
    return words, os.environ | hub


def fetch_from_hub(url: str, folder: Path, name: str = "clip") -> subprocess.CompletedProcess[str]:
    words, environment = command(url, folder, name)
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_hub_download_resumes_after_a_kill(hub: Hub, tmp_path: Path) -> None:
    hub.files[CLIP.source] = {CLIP.target: CONTENT, "README.md": b"not needed"}
    hub.cut, hub.stall = len(CONTENT) - LARGE, True
    words, environment = command(hub.url, tmp_path)
    with subprocess.Popen(words, env=environment) as process:
        assert hub.stalled.wait(60)
        part = tmp_path / "weights" / f".{CLIP.target}.part"
        while not part.exists() or not part.stat().st_size:
            assert process.poll() is None
        process.kill()
    assert not left(tmp_path / "weights")
    hub.cut = None
    done = fetch_from_hub(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.ranges[-1] not in (None, "bytes=0-")
    (path,) = (tmp_path / "weights").iterdir()
    assert path.name == CLIP.target
    assert path.read_bytes() == CONTENT


def test_folder_of_hub_has_one_file_of_weights(hub: Hub, tmp_path: Path) -> None:
    wanted = {"config.json": b"{}", "vocab.txt": b"words", "model.safetensors": CONTENT}
    others = {"pytorch_model.bin": CONTENT, "tf_model.h5": CONTENT, ".gitattributes": b""}
    hub.files[WEIGHTS["blip"].source] = wanted | others
    done = fetch_from_hub(hub.url, tmp_path, "blip")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "weights").iterdir()
    assert folder.name == WEIGHTS["blip"].target
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted


def test_wrong_checksum_of_hub_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files[CLIP.source] = {CLIP.target: CONTENT}
    hub.wrong_checksum = True
    done = fetch_from_hub(hub.url, tmp_path)
    assert done.returncode == 1
    assert "SHA-256" in done.stderr
    assert "Traceback" not in done.stderr
    assert not left(tmp_path / "weights")


@pytest.mark.parametrize(
    ("status", "code", "way_out"),
    [(403, "GatedRepo", "accept its licence"), (401, "", "auth login"), (404, "RepoNotFound", "auth login"),
     (404, "EntryNotFound", "give its path"), (400, "", "400"), (None, "", "no file")],
)  # fmt: skip
def test_refusal_of_hub_is_one_message(
    hub: Hub, tmp_path: Path, status: int | None, code: str, way_out: str
) -> None:
    hub.files[CLIP.source] = {"other": b""}
    hub.status, hub.error_code = status, code
    done = fetch_from_hub(hub.url, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert CLIP.source in done.stderr
    assert way_out in done.stderr
    assert not left(tmp_path / "weights")


def test_file_of_the_hub_gets_the_name_of_its_network(hub: Hub, tmp_path: Path) -> None:
    swin = WEIGHTS["swin_h"]
    hub.files[swin.source] = {swin.file: CONTENT, "model.safetensors": b"not needed"}
    done = fetch_from_hub(hub.url, tmp_path, "swin_h")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "weights").iterdir()
    assert (path.name, path.read_bytes()) == (swin.target, CONTENT)


def test_names_of_configuration_are_found(hub: Hub, tmp_path: Path) -> None:
    weights = WEIGHTS["sd-turbo"]
    hub.files[weights.source] = {weights.target: CONTENT}
    done = fetch_from_hub(hub.url, tmp_path, "sd_turbo")
    assert done.returncode == 0, done.stderr
    assert left(tmp_path / "weights") == [weights.target]


def test_hub_without_network_is_named(tmp_path: Path) -> None:
    done = fetch_from_hub("http://127.0.0.1:9", tmp_path)
    assert done.returncode == 1
    assert "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_table_agrees_with_configuration(tmp_path: Path) -> None:
    named = {line.split()[4] for path in CONF.rglob("*.yaml") for line in path.read_text().splitlines()
             if line.startswith("source: odise weights fetch ")}  # fmt: skip
    alternatives = {"cleandift-sd15-full", "cleandift-sd21-full"}
    assert named == WEIGHTS.keys() - {"label", "caption"} - alternatives
    for name in named:
        (conf,) = (p for p in CONF.rglob("*.yaml") if f"fetch {name} " in p.read_text())
        assert f"/{WEIGHTS[name].target}" in conf.read_text()


def test_list_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / CLIP.target).write_bytes(bytes(2_000_000_000 // 100))
    lines = CliRunner().invoke(app, ["weights", "list", "--folder", str(tmp_path)]).stdout.splitlines()
    (clip,) = (line for line in lines if line.startswith("clip "))
    assert "0.02 GB" in clip
    assert "missing" not in clip
    (label,) = (line for line in lines if line.startswith("label"))
    assert "missing" in label
    assert "CC BY-NC-SA" in label
