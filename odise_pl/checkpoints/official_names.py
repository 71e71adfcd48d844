"""Translation between our names of weights and those of official releases: ODISE's, and FC-CLIP's to ours.

FC-CLIP's names are known from public logs of its loading and from public projects that build on it. Of
``sem_seg_head.predictor.logit_scale`` only the existence is known; no file was at hand to confirm any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

# In official checkpoints, but not of the model: class weights of the loss.
UNUSED = ("criterion.empty_weight",)

_CAPTIONER = ("backbone.feature_extractor.", "backbone.captioner.")
_PIXEL = ("sem_seg_head.pixel_decoder.", "pixel_decoder.")
_MASK = ("sem_seg_head.predictor.", "mask_decoder.")
_TEXT = {"label": "category_head.", "caption": "word_head."}

# (official prefix, our prefix): (official name, our name) pairs. "#" is a number, "*" any rest; the first
# match counts.
_RULES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    _CAPTIONER: (
        ("alpha_cond", "alpha_cond"),
        ("alpha_cond_time_embed", "alpha_time"),
        ("clip_project.*", "clip_project.*"),
        ("time_embed_project.*", "time_project.*"),
    ),
    ("backbone.", "backbone."): (("feature_projections.#.0.*", "pyramid.projections.#.*"),),
    _PIXEL: (
        ("input_proj.#.0.*", "input_proj.#.conv.*"),
        ("input_proj.#.1.*", "input_proj.#.norm.*"),
        ("transformer.level_embed", "level_embed"),
        ("transformer.encoder.layers.#.self_attn.*", "layers.#.attention.*"),
        ("transformer.encoder.layers.#.*", "layers.#.*"),
        ("adapter_1.weight", "lateral.conv.weight"),
        ("adapter_1.norm.*", "lateral.norm.*"),
        ("layer_1.weight", "smooth.conv.weight"),
        ("layer_1.norm.*", "smooth.norm.*"),
        ("mask_features.*", "mask_features.*"),
    ),
    _MASK: (
        ("transformer_self_attention_layers.#.self_attn.*", "layers.#.self_attention.*"),
        ("transformer_self_attention_layers.#.norm.*", "layers.#.self_norm.*"),
        ("transformer_cross_attention_layers.#.multihead_attn.*", "layers.#.cross_attention.*"),
        ("transformer_cross_attention_layers.#.norm.*", "layers.#.cross_norm.*"),
        ("transformer_ffn_layers.#.norm.*", "layers.#.feedforward_norm.*"),
        ("transformer_ffn_layers.#.linear1.*", "layers.#.linear1.*"),
        ("transformer_ffn_layers.#.linear2.*", "layers.#.linear2.*"),
        ("decoder_norm.*", "norm.*"),
        ("query_feat.*", "query_feat.*"),
        ("query_embed.*", "query_embed.*"),
        ("level_embed.*", "level_embed.*"),
        ("mask_embed.*", "mask_mlp.*"),
        ("post_mask_embed.logit_scale", "embedding.log_scale"),
        ("post_mask_embed.pool_proj.0.*", "embedding.pool_norm.*"),
        ("post_mask_embed.pool_proj.1.*", "embedding.pool_proj.*"),
        ("post_mask_embed.mask_embed.0.*", "embedding.query_norm.*"),
        ("post_mask_embed.mask_embed.1.*", "embedding.query_mlp.*"),
        # FC-CLIP
        ("logit_scale", "embedding.log_scale"),
        ("_mask_pooling_proj.0.*", "embedding.pool_norm.*"),
        ("_mask_pooling_proj.1.*", "embedding.pool_proj.*"),
        ("class_embed.layers.*", "embedding.query_mlp.layers.*"),
        # the caption model of ODISE
        ("class_embed.*", "object_head.*"),
    ),
}
_TEXT_RULES = (("text_proj.*", "proj.*"), ("null_embed", "null_embed"))
_FC_CLIP = {("void_embedding.", "text_projection."): (("weight", "null_embed"),)}


def to_ours(name: str) -> str | None:
    """Our name of an official one; None if the release has no such weight in the model."""
    return _translate(name, _pairs("label")) or _translate(name, _pairs("caption"))


def to_official(name: str, supervision: str) -> str | None:
    """The official name of one of our trainable weights; None if the release has no such weight.

    Args:
        name: of a parameter of :class:`~odise_pl.models.odise.Odise`.
        supervision: ``label`` or ``caption``, whose text projections have different names.
    """
    return _translate(name, [(ours, official) for official, ours in _pairs(supervision)])


def preset_of(names: Iterable[str]) -> str:
    """The preset of a network as on the command line, from our names of an official release's weights.

    Only FC-CLIP does not project names, only the caption model of ODISE has an object head.
    """
    known = {name.rpartition(".")[0] for name in names}
    if "backbone.model.visual_projection.0" in known:
        return "method=groupvit"
    if "text_projection.proj" not in known:
        return "method=fc_clip"
    return "model=odise_caption" if "mask_decoder.object_head" in known else "model=odise_label"


@cache
def _pairs(supervision: str) -> Sequence[tuple[str, str]]:
    rules = {**_RULES, (_TEXT[supervision], "text_projection."): _TEXT_RULES, **_FC_CLIP}
    return [
        (official + left, ours + right) for (official, ours), lines in rules.items() for left, right in lines
    ]


def _translate(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    for source, target in pairs:
        found = _pattern(source).fullmatch(name)
        if found:
            return _fill(target, found.groups())
    return None


def _fill(target: str, parts: Sequence[str]) -> str:
    rest = iter(parts)
    return re.sub(r"[#*]", lambda _: next(rest), target)


@cache
def _pattern(source: str) -> re.Pattern[str]:
    return re.compile(re.escape(source).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))
