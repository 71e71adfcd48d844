"""The page: its controls, and what happens when they are used."""

from __future__ import annotations

import html
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from odise_pl.app.examples import paint_examples
from odise_pl.app.inputs import read_picture, read_words
from odise_pl.app.viewer import render
from odise_pl.errors import SettingError, UserError
from odise_pl.models.classifiers.fusion import MODES
from odise_pl.prediction.segmentation import Segmentation
from odise_pl.prediction.segmenter import Segmenter

_MOST_WAITING = 16
_HOUR = 3600


@dataclass(frozen=True)
class Worker:
    """Answers the page's requests.

    Attributes:
        segmenter: shared by all visitors, one at a time.
        folder: of the results that visitors may download.
    """

    segmenter: Segmenter
    folder: Path

    def segment(
        self,
        upload: Mapping[str, Any] | None,
        words: str,
        object_threshold: float,
        overlap_threshold: float,
        mode: str,
    ) -> tuple[str, list[str]]:
        """Segment a picture.

        Args:
            upload: Gradio's record of a file in its folder of uploads.
            words: as typed.
            object_threshold, overlap_threshold: see :class:`~odise_pl.models.inference.InferenceSettings`.
            mode: of the classifier.

        Returns:
            the result as HTML, and the paths of its files.

        Raises:
            gradio.Error: shown on the page; what was sent cannot be used.
        """
        try:
            if not upload:
                raise SettingError("no picture: upload one, take one with the camera, or choose an example")
            path = Path(upload["path"])
            result = self.segmenter(
                read_picture(path),
                read_words(words),
                object_threshold=object_threshold,
                overlap_threshold=overlap_threshold,
                classifier=mode,
            )
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return render(result), [str(file) for file in write_files(result, folder, path.name)]

    def again(self, upload: Mapping[str, Any] | None, words: str, *controls: Any) -> Any:
        """:meth:`segment` with other controls, if there is something to segment."""
        return self.segment(upload, words, *controls) if upload and words.strip() else (gr.skip(), gr.skip())


def write_files(result: Segmentation, folder: Path, picture: str) -> list[Path]:
    """Write ``NAME_segments.png``, and COCO's panoptic format: ``NAME_ids.png`` and ``NAME_coco.json``."""
    name = Path(picture).stem
    shown, ids, coco = (folder / f"{name}{end}" for end in ("_segments.png", "_ids.png", "_coco.json"))
    result.save(folder, name)
    content = result.to_coco_panoptic(0, picture)
    coco.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [shown, ids, coco]


def build_page(segmenter: Segmenter, folder: Path) -> gr.Blocks:
    """The page of a network.

    Args:
        segmenter: the network.
        folder: of examples and results; ``GRADIO_TEMP_DIR`` has to name it.
    """
    worker = Worker(segmenter, folder)
    examples = paint_examples(segmenter.training, folder / "examples")
    with gr.Blocks(title="odise_pl", analytics_enabled=False, delete_cache=(_HOUR, 24 * _HOUR)) as page:
        gr.Markdown("# odise_pl\nName any things in a picture, and get a mask for each.")
        with gr.Row():
            with gr.Column(scale=2):
                inputs, button = _controls(segmenter)
                if examples:
                    gr.Examples(
                        examples, inputs[:2], label="Examples: they fill in the picture and the words"
                    )
            with gr.Column(scale=3):
                viewer = gr.HTML(js_on_load=None, min_height=200)
                files = gr.Files(label="Downloads", interactive=False)
        _connect(worker, inputs, button, [viewer, files])
    return page.queue(max_size=_MOST_WAITING, default_concurrency_limit=1, api_open=False)


def theme() -> gr.Theme:
    """Colours of the documentation; its fonts come with Gradio."""
    return gr.themes.Default(primary_hue=gr.themes.colors.teal)


def _controls(segmenter: Segmenter) -> tuple[list[Any], gr.Button]:
    """The inputs of :meth:`Worker.segment` in order, and the button."""
    settings = segmenter.model.inference
    picture = gr.Image(label="Picture", sources=["upload", "webcam", "clipboard"], height=320)
    words = gr.Textbox(
        label="Words",
        info="separated by commas; :stuff after regions that cannot be counted; or one class per line, "
        "with its synonyms after commas",
        placeholder="dog, park bench, grass:stuff",
        max_lines=8,
    )
    button = gr.Button("Segment", variant="primary")
    with gr.Accordion("Settings", open=False):
        object_ = gr.Slider(
            0,
            1,
            settings.object_threshold,
            step=0.01,
            label="Object threshold",
            info="higher drops segments of low score",
        )
        overlap = gr.Slider(
            0,
            1,
            settings.overlap_threshold,
            step=0.01,
            label="Overlap threshold",
            info="lower keeps segments that others largely cover",
        )
        mode = gr.Radio(
            list(MODES),
            value=segmenter.model.classifier.mode,
            label="Classifier",
            info="discriminative: CLIP alone names the masks; diffusion: the trained head alone",
        )
    return [picture, words, object_, overlap, mode], button


def _connect(worker: Worker, inputs: list[Any], button: gr.Button, outputs: list[Any]) -> None:
    """Segment when the button or Enter is pressed, and again when a control changes."""
    _, words, object_, overlap, mode = inputs

    def connect(triggers: list[Any], answer: Callable[..., Any]) -> None:
        gr.on(
            triggers,
            answer,
            inputs,
            outputs,
            preprocess=False,  # Gradio's own would decode pictures before their size is known
            concurrency_id="network",
            trigger_mode="always_last",
            api_visibility="private",
        )

    connect([button.click, words.submit], worker.segment)
    connect([object_.release, overlap.release, mode.input], worker.again)
