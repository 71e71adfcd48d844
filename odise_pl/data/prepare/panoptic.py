"""Check and pack panoptic samples; images and PNGs are copied unchanged. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from pycocotools import mask as mask_api

from odise_pl.data.images import exif_orientation, open_stored, pack_image
from odise_pl.data.instances import encode_rle
from odise_pl.data.label_maps import decode_ids, unique_ids
from odise_pl.data.prepare.source import Members, Problem, SourceSample, to_json
from odise_pl.data.records import INSTANCES, PANOPTIC, RECORD, DataError

_SHOWN = 5


def check_panoptic(sample: SourceSample) -> list[Problem]:
    """Compare image, PNG and objects of a sample with its annotation; returns all problems."""
    (panoptic,) = sample.labels
    faults = [(sample.image, cause) for cause in (*find_image_faults(sample), *encode_instances(sample)[1])]
    faults += [(panoptic, cause) for cause in _find_panoptic_faults(sample)]
    return [Problem(sample.name, file.display_name, cause) for file, cause in faults]


def pack_panoptic(sample: SourceSample) -> tuple[Members, int]:
    """The members of a sample, and its number of segments."""
    members = {**image_member(sample), PANOPTIC: sample.labels[0].read(), RECORD: sample.record()}
    if sample.instances is not None:
        members[INSTANCES] = encode_instances(sample)[0]
    return members, len(sample.segments)


def image_member(sample: SourceSample) -> dict[str, bytes]:
    """The member with the image of a sample, see :func:`pack_image`."""
    return dict([pack_image(sample.image.read())])


def encode_instances(sample: SourceSample) -> tuple[bytes, list[str]]:
    """The member with the valid objects of a sample, and the faults of the others."""
    items, faults = [], []
    for instance in sample.instances or ():
        try:
            code = encode_rle(instance.segmentation, sample.size)
            if not mask_api.area(code):
                raise DataError("has no pixel inside the image")
        except DataError as error:
            faults.append(f"{instance.where} {error}")
            continue
        mask = {"size": list(sample.size), "counts": code["counts"].decode()}
        items.append(
            {
                "category": instance.category,
                "iscrowd": instance.iscrowd,
                "area": instance.area,
                "segmentation": mask,
            }
        )
    return to_json(items), faults


def find_image_faults(sample: SourceSample) -> Iterator[str]:
    """Faults of the image file of a sample with an annotated size."""
    try:
        image = open_stored(sample.image.read_checked())
    except DataError as error:
        yield str(error)
        return
    turned = exif_orientation(image)
    hint = f" (its EXIF orientation {turned} is not applied: annotations refer to the stored pixels)"
    if (image.height, image.width) != sample.size:
        yield _wrong_size("the image", (image.height, image.width), sample.size) + hint * (turned != 1)


def _find_panoptic_faults(sample: SourceSample) -> Iterator[str]:
    try:
        ids = decode_ids(sample.labels[0].read_checked())
    except DataError as error:
        yield str(error)
        return
    if ids.shape != sample.size:
        yield _wrong_size("the PNG", (ids.shape[0], ids.shape[1]), sample.size)
    painted = set(unique_ids(ids).tolist()) - {0}
    listed = {segment.id for segment in sample.segments}
    if painted - listed:
        yield f"has pixels of ids that segments_info lacks: {format_some(painted - listed)}"
    if listed - painted:
        yield f"has no pixel of ids that segments_info lists: {format_some(listed - painted)}"


def _wrong_size(what: str, actual: tuple[int, int], annotated: tuple[int, int]) -> str:
    return f"{what} has {actual[1]}x{actual[0]} pixels, the annotation says {annotated[1]}x{annotated[0]}"


def format_some(values: set[int]) -> str:
    """The first values of a set for a message."""
    some = ", ".join(str(value) for value in sorted(values)[:_SHOWN])
    return some if len(values) <= _SHOWN else f"{some} and {len(values) - _SHOWN} more"
