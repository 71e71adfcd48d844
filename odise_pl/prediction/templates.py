"""Embed a vocabulary, for masked CLIP in several prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.odise import InferenceClasses, Odise
from odise_pl.vocabulary import Vocabulary


def embed_vocabulary(
    model: Odise, vocabulary: Vocabulary, training: Vocabulary, templates: Sequence[str] = ()
) -> InferenceClasses:
    """The classes of a vocabulary; for masked CLIP by the mean of their normalised embeddings.

    Args:
        model: embeds them.
        vocabulary: the classes.
        training: see :meth:`Odise.prepare`.
        templates: prompts with ``{}`` for the name; none: the model's own prompt.

    Raises:
        SettingError: a template lacks ``{}``.
    """
    for template in templates:
        if "{}" not in template:
            raise SettingError(f"templates: {template!r} needs {{}} for the class name")
    classes = model.prepare(vocabulary, training)
    texts = [model.encode_classes(vocabulary.labels, template) for template in templates]
    if not texts:
        return classes
    mean = torch.stack([F.normalize(text.embeddings, dim=-1) for text in texts]).mean(0)
    return replace(classes, clip_text=replace(texts[0], embeddings=mean))
