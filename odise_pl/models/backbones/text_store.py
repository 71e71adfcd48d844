"""Text embeddings on disk, by model and text: a vocabulary is embedded once, whatever is evaluated on it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from odise_pl.models.backbones.text_cache import Encode

_SUFFIX = ".safetensors"


class TextStore:
    """A folder of embeddings: one subfolder a model, in it one file for each set of texts that was new.

    Files are written whole or not at all, and several processes may write at once: at worst they hold the
    same texts twice. A file that cannot be read counts as not there.

    Args:
        folder: made when it is needed.
        model: tells models apart, see :func:`fingerprint`.
    """

    def __init__(self, folder: Path | str, model: str) -> None:
        self.folder = Path(folder) / model
        self._known: dict[str, Tensor] | None = None

    def embed(self, texts: Sequence[str], encode: Encode) -> Tensor:
        """Embeddings [len(texts), D] in main memory; ``encode`` makes those that are not known, each once."""
        if self._known is None:
            self._known = self._read()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            rows = encode(new).detach().float().cpu()
            self._write(new, rows)
            self._known.update(zip(new, rows, strict=True))
        return torch.stack([self._known[text] for text in texts])

    def _read(self) -> dict[str, Tensor]:
        known: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            try:
                with safe_open(path, "pt") as file:
                    texts = json.loads(file.metadata()["texts"])
                    known.update(zip(texts, file.get_tensor("embeddings"), strict=True))
            except (OSError, SafetensorError, KeyError, TypeError, ValueError):
                continue  # encoded anew, and written under the same name
        return known

    def _write(self, texts: Sequence[str], rows: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(list(texts), ensure_ascii=False)
        name = hashlib.sha256(content.encode()).hexdigest()[:32] + _SUFFIX
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".")
        os.close(descriptor)
        try:
            save_file({"embeddings": rows.contiguous()}, temporary, {"texts": content})
            Path(temporary).replace(self.folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def fingerprint(weights: Mapping[str, Tensor], kind: str) -> str:
    """A digest of weights by name and of what they are computed with."""
    digest = hashlib.sha256(kind.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
