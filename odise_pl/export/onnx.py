"""ONNX files of trained networks, and embeddings of words for them."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from odise_pl.errors import SettingError
from odise_pl.export.graph import TEXT_INPUTS, NetworkGraph, text_inputs
from odise_pl.files import write_bytes
from odise_pl.models.classifiers.text import InferenceClasses
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.structures import Size
from odise_pl.vocabulary import Vocabulary, VocabularyError, load_vocabulary

# any words: as inputs they only tell the exporter which sides may vary; classes and names differ in number
_EXAMPLE = load_vocabulary(["one,two", "three:stuff"])


def export(
    checkpoint: Path,
    out: Path,
    size: str | None = None,
    words: str | None = None,
    head_only: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write the network of a checkpoint as ``.onnx``, or embedded words as ``.npz``.

    Args:
        checkpoint, settings: see :meth:`Segmenter.from_pretrained`.
        out: the file.
        size: ``HEIGHTxWIDTH``; see :func:`export_network`, also for ``words`` and ``head_only``.

    Returns:
        the written files.

    Raises:
        UserError: an argument is wrong, or a package is missing.
    """
    if out.suffix not in (".onnx", ".npz"):
        raise SettingError(f"OUT {out}: name it .onnx (the network) or .npz (embeddings of --words)")
    if out.suffix == ".npz" and (words is None or size or head_only):
        raise SettingError(f"OUT {out} is for embeddings: add --words, without --size and --head-only")
    try:
        vocabulary = None if words is None else load_vocabulary(words, one_word=True)
    except VocabularyError as error:
        raise SettingError(f"--words: {error}") from error
    pixels = None if size is None else _parse_size(size)
    if out.suffix == ".onnx":
        require_onnx()
    segmenter = Segmenter.from_pretrained(checkpoint, settings, "cpu")
    if vocabulary is not None and out.suffix == ".npz":
        return [export_embeddings(segmenter, out, vocabulary)]
    return export_network(segmenter, out, pixels, vocabulary, head_only)


def _parse_size(text: str) -> Size:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise SettingError(f"--size {text}: give HEIGHTxWIDTH in pixels, such as 512x512")
    return int(match[1]), int(match[2])


def export_network(
    segmenter: Segmenter,
    out: Path,
    size: Size | None = None,
    words: Any = None,
    head_only: bool = False,
) -> list[Path]:
    """Write a network as ONNX.

    Weights beyond 2 GB, which one ONNX file cannot hold, go into ``OUT.data`` beside it.

    Args:
        segmenter: the network, on the CPU.
        out: file to write, with the suffix ``.onnx``.
        size: height and width of the input image; None: one window of the backbone.
        words: see :func:`load_vocabulary`; their embeddings become constants. None makes them inputs, see
            :func:`export_embeddings`.
        head_only: see :class:`NetworkGraph`.

    Returns:
        the written files.

    Raises:
        SettingError: a package is missing, the file cannot be written, or network or size do not fit.
        VocabularyError: there are no words, or duplicates.
    """
    require_onnx()
    vocabulary = None if words is None else load_vocabulary(words, one_word=True)
    classes = _embed(segmenter, vocabulary or _EXAMPLE)
    graph = NetworkGraph(segmenter.model, size, classes if vocabulary else None, head_only).eval()
    with _writing(out), tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        program = _convert(graph, classes)
        program.model.metadata_props.update(_metadata(segmenter, vocabulary, classes))
        program.save(Path(folder) / out.name)
        written = sorted(Path(folder).iterdir(), reverse=True)  # OUT.data before OUT
        return [path.replace(out.parent / path.name) for path in written]


def export_embeddings(segmenter: Segmenter, out: Path, words: Any) -> Path:
    """Write embedded words for a network whose embeddings are inputs, as ``.npz``.

    The arrays are named as the inputs, see :func:`text_inputs`, and ``names``, ``isthing`` and ``penalty`` of
    the classes.

    Raises:
        SettingError: the file cannot be written.
        VocabularyError: there are no words, or duplicates.
    """
    vocabulary = load_vocabulary(words, one_word=True)
    classes = _embed(segmenter, vocabulary)
    tensors = text_inputs(classes)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in zip(TEXT_INPUTS, tensors, strict=True)}
    arrays |= {name: np.array(values) for name, values in _about(segmenter, vocabulary, classes).items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    with _writing(out):
        write_bytes(out, content.getvalue())
    return out


def _convert(graph: NetworkGraph, classes: InferenceClasses) -> torch.onnx.ONNXProgram:
    with torch.no_grad():
        program = torch.onnx.export(
            graph,
            graph.example(classes),
            input_names=graph.input_names,
            output_names=graph.output_names,
            dynamic_shapes=graph.dynamic_shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program


def _embed(segmenter: Segmenter, vocabulary: Vocabulary) -> InferenceClasses:
    return segmenter.model.prepare(vocabulary, segmenter.training)


def _about(segmenter: Segmenter, vocabulary: Vocabulary, classes: InferenceClasses) -> dict[str, Any]:
    """What inference needs of the classes; dense methods subtract the penalty from their probabilities."""
    seen = [False] * len(vocabulary) if classes.seen is None else classes.seen.tolist()
    penalty = [segmenter.model.inference.seen_penalty * known for known in seen]
    return {"names": vocabulary.names, "isthing": vocabulary.isthing, "penalty": penalty}


def _metadata(
    segmenter: Segmenter, vocabulary: Vocabulary | None, classes: InferenceClasses
) -> dict[str, str]:
    """What inference needs besides the graph, each value as JSON."""
    settings = segmenter.model.inference
    values: dict[str, Any] = {
        "object_threshold": settings.object_threshold,
        "overlap_threshold": settings.overlap_threshold,
    }
    if vocabulary is not None:
        values |= _about(segmenter, vocabulary, classes)
    return {name: json.dumps(value) for name, value in values.items()}


def require_onnx() -> None:
    """Raise SettingError unless the packages for export are installed."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise SettingError(f"export needs {' and '.join(missing)}: pip install 'odise_pl[onnx]'")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingError(f"cannot write {out}: {error.strerror or error}") from error
