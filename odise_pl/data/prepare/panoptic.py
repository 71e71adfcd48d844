"""Check and pack panoptic samples; images and PNGs are copied unchanged. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from pycocotools import mask as mask_api

from odise_pl.data.images import check_stored, exif_orientation, open_image, pack_image
from odise_pl.data.instances import encode_rle
from odise_pl.data.label_maps import decode_ids, unique_ids
from odise_pl.data.prepare.files import SourcePath
from odise_pl.data.prepare.source import Members, Problem, SourceSample, to_json
from odise_pl.data.records import INSTANCES, PANOPTIC, RECORD, DataError, prefix_errors

_SHOWN = 5
Check = tuple[SourcePath, Callable[[SourceSample], object]]  # a file, and a function that raises its fault


def find_problems(sample: SourceSample, *checks: Check) -> list[Problem]:
    """The faults that checks of a sample raise as DataError."""
    problems = []
    for file, check in checks:
        try:
            check(sample)
        except DataError as error:
            problems.append(Problem(sample.name, file.display_name, str(error)))
    return problems


def check_panoptic(sample: SourceSample) -> list[Problem]:
    """Compare image, PNG and objects of a sample with its annotation; returns the first fault of each."""
    image, (panoptic,) = sample.image, sample.labels
    return find_problems(
        sample, (image, check_image), (image, encode_instances), (panoptic, _check_panoptic_png)
    )


def pack_panoptic(sample: SourceSample) -> tuple[Members, int]:
    """The members of a sample, and its number of segments."""
    members = {**image_member(sample), PANOPTIC: sample.labels[0].read(), RECORD: sample.record()}
    if sample.instances is not None:
        members[INSTANCES] = encode_instances(sample)
    return members, len(sample.segments)


def image_member(sample: SourceSample) -> dict[str, bytes]:
    """The member with the image of a sample, see :func:`pack_image`."""
    return dict([pack_image(sample.image.read())])


def encode_instances(sample: SourceSample) -> bytes:
    """The member with the objects of a sample; DataError for the first object without a valid mask."""
    items = []
    for instance in sample.instances or ():
        with prefix_errors(instance.where):
            code = encode_rle(instance.segmentation, sample.size)
            if not mask_api.area(code):
                raise DataError("has no pixel inside the image")
        mask = {"size": list(sample.size), "counts": code["counts"].decode()}
        fields = {"category": instance.category, "iscrowd": instance.iscrowd, "area": instance.area}
        items.append({**fields, "segmentation": mask})
    return to_json(items)


def check_image(sample: SourceSample) -> None:
    """Raise DataError if the image file cannot be used or has another size than annotated."""
    content = sample.image.read()
    size = check_stored(content)
    turned = 1 if size == sample.size else exif_orientation(open_image(content))
    hint = f" (its EXIF orientation {turned} is not applied: annotations refer to the stored pixels)"
    _check_size("the image", size, sample, hint if turned != 1 else "")


def _check_panoptic_png(sample: SourceSample) -> None:
    ids = decode_ids(sample.labels[0].read())
    _check_size("the PNG", (ids.shape[0], ids.shape[1]), sample)
    painted = set(unique_ids(ids).tolist()) - {0}
    listed = {segment.id for segment in sample.segments}
    if painted - listed:
        raise DataError(f"has pixels of ids that segments_info lacks: {format_some(painted - listed)}")
    if listed - painted:
        raise DataError(f"has no pixel of ids that segments_info lists: {format_some(listed - painted)}")


def _check_size(what: str, size: tuple[int, int], sample: SourceSample, hint: str = "") -> None:
    if size != sample.size:
        height, width = sample.size
        raise DataError(f"{what} has {size[1]}x{size[0]} pixels, the annotation says {width}x{height}{hint}")


def format_some(values: set[int]) -> str:
    """The first values of a set for a message."""
    some = ", ".join(str(value) for value in sorted(values)[:_SHOWN])
    return some if len(values) <= _SHOWN else f"{some} and {len(values) - _SHOWN} more"
