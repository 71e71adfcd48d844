"""Downloads that resume, are verified, and appear under their final name only when they are complete."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from odise_pl.errors import DownloadError, hub_errors
from odise_pl.files import is_plain_name

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without data
_OTHER_FRAMEWORKS = (".h5", ".msgpack", ".onnx")


def verify_sha256(path: Path, beginning: str) -> None:
    """Raise DownloadError unless the SHA-256 of a file begins as it should."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(beginning):
        found = found[: len(beginning)]
        raise DownloadError(f"{path} has SHA-256 {found}, not {beginning}; delete it, and fetch it again")


def download_url(url: str, target: Path, sha256: str, headers: Mapping[str, str] | None = None) -> None:
    """Download a file; what an interrupted download left, also of another process, is continued.

    Args:
        url: of the file.
        target: where it is written, when it is complete and verified.
        sha256: its SHA-256 or the beginning of it; nothing is verified if it is empty.
        headers: of the request, such as an authorisation.

    Raises:
        DownloadError: the server cannot be reached or refuses, or the checksum differs.
    """
    part = target.with_name(f".{target.name}.part")
    shown = urlsplit(url)._replace(query="").geturl()  # which may hold a signature
    try:
        before = -1
        while not _continue(url, part, headers or {}):
            if before == (before := part.stat().st_size):
                raise ConnectionError(f"the connection ended after {before} bytes")
    except HTTPError as error:
        raise DownloadError(f"{shown}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{shown}: {error}; run the command again to resume") from error
    try:
        verify_sha256(part, sha256)
    except DownloadError as error:
        part.unlink()  # it would be continued
        raise DownloadError(f"{shown}: not the expected file, or damaged on its way ({error})") from error
    part.replace(target)


def _continue(url: str, part: Path, headers: Mapping[str, str]) -> bool:
    """Append what ``part`` lacks; whether it is complete then."""
    from rich.progress import DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    done = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a token is for this server only
    try:
        response = urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        if done and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True
        raise
    columns = TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with response, Progress(*columns) as progress:
        start = done if response.status == HTTPStatus.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        task = progress.add_task(part.name.strip(".").removesuffix(".part"), total=total, completed=start)
        with part.open("ab" if start else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
            return total is None or file.tell() >= total


def download_repository(repository: str, target: Path, sha256: str = "", name: str = "") -> None:
    """Download a file of a repository of the Hub, or all its files for PyTorch.

    The Hub's own client starts again after an interruption, so it only says where the files are. Large files
    are verified with the checksums that the Hub names.

    Args:
        repository: ``OWNER/NAME``.
        target: the file; a name without suffix is the folder of all files.
        sha256: of the file, if known otherwise.
        name: of the file in the repository; empty for that of ``target``.

    Raises:
        DownloadError: the Hub cannot be reached or refuses, or a checksum differs.
    """
    from huggingface_hub import HfApi

    with hub_errors(repository):
        info = HfApi().model_info(repository, files_metadata=True)
    files = _wanted(info.siblings or [], repository, name or target.name)
    folder = target.with_name(f".{target.name}.part") if not target.suffix else target.parent
    folder.mkdir(exist_ok=True)
    for file in files:
        path = target if file.rfilename == name else folder / file.rfilename
        if not path.exists():
            url, headers = _locate(repository, file.rfilename, info.sha)
            download_url(url, path, sha256 or (file.lfs.sha256 if file.lfs else ""), headers)
    if folder != target.parent:
        folder.replace(target)


def _locate(repository: str, name: str, revision: str | None) -> tuple[str, dict[str, str]]:
    """The address of a file, and the headers that its server asks for."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    with hub_errors(repository):
        url = get_hf_file_metadata(hf_hub_url(repository, name, revision=revision)).location
    own = urlsplit(url).netloc == urlsplit(constants.ENDPOINT).netloc
    return url, build_hf_headers() if own else {}


def _wanted(files: Sequence[Any], repository: str, name: str) -> list[Any]:
    """The file of this name; for the name of a folder all but hidden ones and those of other frameworks."""
    every = {file.rfilename for file in files}
    names = {other for other in every if is_plain_name(other)}
    if Path(name).suffix:
        names = every & {name}
    elif "model.safetensors" in names:
        names.discard("pytorch_model.bin")
    skipped = {n for n in names if n.startswith(".") or n.endswith(_OTHER_FRAMEWORKS)}
    kept = [file for file in files if file.rfilename in names - skipped]
    if not kept:
        raise DownloadError(f"{repository} has no file {name}")
    return kept
