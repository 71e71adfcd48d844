"""Settings of the heads, which build their two parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from odise_pl.errors import SettingError, check_flag, check_number
from odise_pl.models.heads.dense import ASPP, DENSE, DPT, DeepLab, PixelEmbedding
from odise_pl.models.heads.mask_decoder import MaskDecoder
from odise_pl.models.heads.maskformer import FPN, MaskFormerDecoder, TopDown
from odise_pl.models.heads.pixel_decoder import PixelDecoder

AnyPixelDecoder = PixelDecoder | FPN | TopDown | DPT | ASPP | DeepLab
AnyMaskDecoder = MaskDecoder | MaskFormerDecoder | PixelEmbedding


@dataclass(frozen=True)
class HeadSettings:
    """Sizes of the pixel decoder and the mask decoder; the defaults are the published ones.

    Attributes:
        channels: width of both decoders.
        mask_channels: width of the mask features.
        embed_dim: width in which masks are compared with names; None: CLIP's, without a projection of names.
        pixel_feedforward: width of the pixel decoder's feed-forward nets.
        pixel_layers: layers of the pixel decoder.
        queries: masks per image.
        layers: layers of the mask decoder.
        heads: attention heads of both decoders.
        feedforward: width of the mask decoder's feed-forward nets.
        query_norm: normalise the sum of query and mask feature before their embedding (not in FC-CLIP).
    """

    channels: int = 256
    mask_channels: int = 256
    embed_dim: int | None = 256
    pixel_feedforward: int = 1024
    pixel_layers: int = 6
    queries: int = 100
    layers: int = 9
    heads: int = 8
    feedforward: int = 2048
    query_norm: bool = True

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(HeadSettings) if one.name != "query_norm"):
            if name != "embed_dim" or self.embed_dim is not None:
                check_number(f"model.head.{name}", getattr(self, name), 1)
        check_flag("model.head.query_norm", self.query_norm)
        if self.channels % 32 or self.channels % self.heads:
            raise SettingError(
                f"model.head.channels={self.channels} must be a multiple of 32 and of heads={self.heads}"
            )

    def pixel_decoder(self, in_channels: Sequence[int]) -> AnyPixelDecoder:
        """The pixel decoder for a pyramid of ``in_channels``."""
        sizes = (self.channels, self.mask_channels, self.pixel_feedforward, self.pixel_layers, self.heads)
        return PixelDecoder(in_channels, *sizes)

    def mask_decoder(self, text_dim: int | None, object_head: bool) -> AnyMaskDecoder:
        """The mask decoder.

        Args:
            text_dim: width of CLIP; None: class-agnostic masks.
            object_head: of the caption model.
        """
        return MaskDecoder(*self._sizes(text_dim), object_head, self.query_norm)

    def _sizes(self, text_dim: int | None) -> tuple[int, int, int | None, int, int, int, int]:
        """The sizes that every mask decoder takes first."""
        widths = (self.channels, self.mask_channels, text_dim and (self.embed_dim or text_dim))
        return (*widths, self.queries, self.layers, self.heads, self.feedforward)


@dataclass(frozen=True)
class MaskFormerSettings(HeadSettings):
    """Sizes of MaskFormer's head.

    Its FPN has no layers: settings that begin with ``pixel_``, and ``query_norm``, are unused.

    Attributes:
        layers: of the mask decoder.
        dropout: of the mask decoder, in training.
        embed_layers: linear layers from a query to its embedding.
        logit_scale: fixed factor of cosine similarities, at most 100; None: it is trained.
        regions: embed the features under the soft masks (OpenSeg) instead of the queries.
    """

    layers: int = 6
    dropout: float = 0.1
    embed_layers: int = 2
    logit_scale: float | None = None
    regions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("model.head.dropout", self.dropout, 0, whole=False, most=1)
        check_number("model.head.embed_layers", self.embed_layers, 1)
        check_flag("model.head.regions", self.regions)
        if self.logit_scale is not None:
            check_number("model.head.logit_scale", self.logit_scale, 1, whole=False, most=100)

    def pixel_decoder(self, in_channels: Sequence[int]) -> FPN:
        """See :meth:`HeadSettings.pixel_decoder`."""
        return FPN(in_channels, self.channels, self.mask_channels, self.regions)

    def mask_decoder(self, text_dim: int | None, object_head: bool) -> MaskFormerDecoder:
        """See :meth:`HeadSettings.mask_decoder`."""
        embedding = (self.embed_layers, self.logit_scale)
        return MaskFormerDecoder(*self._sizes(text_dim), self.dropout, *embedding, object_head)


@dataclass(frozen=True)
class DenseSettings(HeadSettings):
    """Sizes of a head that names every pixel by itself, without masks.

    Of the other heads' settings, only ``channels`` and ``embed_dim`` are used.

    Attributes:
        kind: ``fpn``, ``dpt`` (LSeg), ``aspp`` (DeepLabV2, SPNet) or ``deeplab`` (DeepLabV3+, ZS3Net).
        logit_scale: fixed factor of the similarities, at most 100; None: it is trained.
        cosine: compare with names by the cosine; false: by the dot product with names of unit length.
    """

    kind: str = "fpn"
    logit_scale: float | None = 1 / 0.07
    cosine: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in DENSE:
            raise SettingError(f"model.head.kind={self.kind}: choose one of {', '.join(DENSE)}")
        check_flag("model.head.cosine", self.cosine)
        if self.logit_scale is not None:
            check_number("model.head.logit_scale", self.logit_scale, 1, whole=False, most=100)

    def pixel_decoder(self, in_channels: Sequence[int]) -> TopDown | DPT | ASPP | DeepLab:
        """See :meth:`HeadSettings.pixel_decoder`."""
        return DENSE[self.kind](in_channels, self.channels)

    def mask_decoder(self, text_dim: int | None, object_head: bool) -> PixelEmbedding:
        """See :meth:`HeadSettings.mask_decoder`."""
        assert text_dim is not None  # build_odise allows labels only
        return PixelEmbedding(self.channels, self.embed_dim or text_dim, self.logit_scale)
