"""The model card of a published network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odise_pl.checkpoints.description import NetworkSettings
from odise_pl.hub.weights import find_weights
from odise_pl.metrics.tables import COLUMNS, result_table
from odise_pl.runs.record import extract_ablation_settings

CARD = "README.md"
_HEADLINE = ("PQ", "mAP", "mIoU")


def model_card(
    name: str,
    network: NetworkSettings,
    checkpoint: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    command: str | None,
    licence: str | None,
) -> str:
    """A model card in Markdown, with the metadata that the Hub reads.

    Args:
        name: ``OWNER/NAME``.
        network: its settings.
        checkpoint: of the run.
        results: of every set, see :func:`~odise_pl.metrics.report.as_dict`.
        command: that trained the network, if it is known.
        licence: of the trained weights, as an identifier of the Hub.
    """
    settings = extract_ablation_settings(network.model)
    vocabulary = checkpoint["odise"]["vocabulary"]
    classes = [category["name"] for category in vocabulary["categories"]]
    scores = result_table(results).markdown() if results else "None were measured at this step.\n"
    trained = f"```bash\n{command}\n```\n" if command else "The command was not recorded.\n"
    return f"""---
{_metadata(name, network, results, licence)}
---

# {name.partition("/")[2]}

Open-vocabulary panoptic segmentation: it segments images by words that you give. Trained with odise_pl, which
implements *Open-Vocabulary Panoptic Segmentation with Text-to-Image Diffusion Models*
([arXiv 2303.04803](https://arxiv.org/abs/2303.04803)).

```python
from odise_pl import Segmenter

segmenter = Segmenter.from_pretrained("{name}")
result = segmenter("photo.jpg", ["dog", "park bench,bench", "grass:stuff"])
result.save("results", "photo")
```

`model.safetensors` holds the trained weights only. The frozen ones are loaded from the folder
`weights`; a missing file is named with the command that fetches it.

## Scores

{scores}
## Training

{trained}
| | |
|---|---|
| step | {checkpoint["global_step"]} |
| method | {settings.method} |
| supervision | {settings.model} |
| diffusion steps | {settings.timesteps} |
| captioner | {settings.captioner} |
| classifier | {settings.classifier} |
| images | shorter side {network.sides[0]}, longer side at most {network.sides[1]} pixels |
| classes | {len(classes)} of {vocabulary["name"]}: {", ".join(classes)} |

## Licences

| frozen weights | from | licence |
|---|---|---|
{_licences(network)}
Trained weights: {licence or "no licence is stated; ask the publisher"}. Code: Apache-2.0.
"""


def _metadata(
    name: str, network: NetworkSettings, results: Sequence[Mapping[str, Any]], licence: str | None
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    known = [weights for path in _frozen(network) if (weights := find_weights(path)) is not None]
    scores = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Panoptic segmentation",
            dataset_type=result["data"],
            dataset_name=result["data"],
            metric_type=COLUMNS[column],
            metric_name=f"{column} (%)",
            metric_value=round(100 * result["scores"][COLUMNS[column]], 2),
        )
        for result in results
        for column in _HEADLINE
        if COLUMNS[column] in result["scores"]
    ]
    data = ModelCardData(
        base_model=[weights.source for weights in known] or None,
        eval_results=scores or None,
        library_name="odise_pl",
        license=licence,
        model_name=name.partition("/")[2],
        pipeline_tag="image-segmentation",
        tags=["panoptic-segmentation", "open-vocabulary"],
    )
    return data.to_yaml()


def _licences(network: NetworkSettings) -> str:
    lines = []
    for path in _frozen(network):
        weights, own = find_weights(path), path.startswith("${paths.toyworld}")
        source = weights.source if weights else "odise_pl" if own else "unknown"
        licence = weights.licence if weights else "Apache-2.0" if own else "see the source"
        lines.append(f"| {Path(path).name} | {source} | {licence} |\n")
    return "".join(lines)


def _frozen(network: NetworkSettings) -> list[str]:
    """Files and ids of the frozen weights."""
    return [path for path in network.weights().values() if path]
