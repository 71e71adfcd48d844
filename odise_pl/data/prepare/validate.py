"""What can be wrong with the files of a panoptic sample. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from odise_pl.data.files import SourceFile
from odise_pl.data.images import decode_ids, open_stored, orientation, pack_image, unique_ids
from odise_pl.data.instances import instances_member
from odise_pl.data.records import (
    INSTANCES,
    PANOPTIC,
    RECORD,
    DataError,
    Examined,
    Problem,
    SourceSample,
)

_SHOWN = 5


def examine_panoptic(sample: SourceSample) -> Examined:
    """Open image and PNG of a sample and compare them with its annotation; every fault is returned."""
    image, panoptic = sample.files
    _, object_faults = examine_instances(sample)
    checks = {
        image.shown: [*image_faults(sample), *object_faults],
        panoptic.shown: list(_panoptic_faults(sample)),
    }
    problems = tuple(Problem(sample.name, file, cause) for file, causes in checks.items() for cause in causes)
    if problems:
        return Examined(problems)
    return Examined((), tuple(map(len, verbatim_members(sample).values())), len(sample.segments))


def verbatim_members(sample: SourceSample) -> dict[str, bytes]:
    """The sample's files as they are on disk, its record, and its objects if it has any."""
    objects, _ = examine_instances(sample)
    panoptic = sample.labels[0].read()
    return {**image_member(sample), PANOPTIC: panoptic, RECORD: sample.record(), **objects}


def image_member(sample: SourceSample) -> dict[str, bytes]:
    """The member with the image of a sample, see :func:`pack_image`."""
    return dict([pack_image(sample.image.read())])


def examine_instances(sample: SourceSample) -> tuple[dict[str, bytes], list[str]]:
    """The member with the objects of a sample, if it has any, and what is wrong with them."""
    if sample.instances is None:
        return {}, []
    content, faults = instances_member(sample.instances, sample.size)
    return {INSTANCES: content}, faults


def read_file(file: SourceFile) -> bytes:
    """The content of a source file; DataError with the cause alone if it cannot be read."""
    try:
        return file.read()
    except FileNotFoundError as error:
        raise DataError("is missing") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from error


def image_faults(sample: SourceSample) -> Iterator[str]:
    """What is wrong with the image file of a sample whose size is annotated."""
    try:
        image = open_stored(read_file(sample.image))
    except DataError as error:
        yield str(error)
        return
    if (image.height, image.width) != sample.size:
        yield _wrong_size("the image", (image.height, image.width), sample.size) + _exif_hint(image)


def _exif_hint(image: Image.Image) -> str:
    turned = orientation(image)
    if turned == 1:
        return ""
    return f" (its EXIF orientation {turned} is not applied: annotations are of the stored pixels)"


def _panoptic_faults(sample: SourceSample) -> Iterator[str]:
    try:
        ids = decode_ids(read_file(sample.labels[0]))
    except DataError as error:
        yield str(error)
        return
    if ids.shape != sample.size:
        yield _wrong_size("the PNG", (ids.shape[0], ids.shape[1]), sample.size)
    painted = set(unique_ids(ids).tolist()) - {0}
    listed = {segment.id for segment in sample.segments}
    if painted - listed:
        yield f"has pixels of ids that segments_info lacks: {shown(painted - listed)}"
    if listed - painted:
        yield f"has no pixel of ids that segments_info lists: {shown(listed - painted)}"


def _wrong_size(what: str, actual: tuple[int, int], annotated: tuple[int, int]) -> str:
    return f"{what} has {actual[1]}x{actual[0]} pixels, the annotation says {annotated[1]}x{annotated[0]}"


def shown(values: set[int]) -> str:
    """The first values of a set for a message."""
    some = ", ".join(str(value) for value in sorted(values)[:_SHOWN])
    return some if len(values) <= _SHOWN else f"{some} and {len(values) - _SHOWN} more"
