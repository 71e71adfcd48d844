"""What visitors of the page send: pictures and words, within limits."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path

from PIL import Image

from odise_pl.data.images import open_image, read_header, to_upright_rgb
from odise_pl.data.records import prefix_errors
from odise_pl.errors import SettingError
from odise_pl.vocabulary import Vocabulary, load_vocabulary, packaged_vocabularies

MOST_BYTES = 50 * 2**20
MOST_PIXELS = 40 * 10**6
MOST_NAMES = 500  # with synonyms; COCO has 221
_MOST_LETTERS = 20_000
# in a list in brackets YAML would multiply its anchors
_NOT_IN_LISTS = re.compile(r"[&*]")


def read_picture(path: Path) -> Image.Image:
    """The picture of an uploaded file, upright and RGB.

    Raises:
        SettingError: it is gone, or has too many pixels.
        DataError: it cannot be decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path.name} is no longer on the server: upload it again") from error
    pixels = 0
    with suppress(Exception):  # a damaged file makes Pillow raise almost anything; open_image says why
        pixels = math.prod(read_header(data).size)
    if pixels > MOST_PIXELS:
        raise SettingError(
            f"{path.name} has {pixels / 1e6:.0f} megapixels, the page takes up to {MOST_PIXELS / 1e6:.0f}: "
            "make it smaller, or use odise predict"
        )
    with prefix_errors(path.name):
        return to_upright_rgb(open_image(data))


def read_words(text: str) -> Vocabulary:
    """What to look for, written as for ``--words``; but visitors cannot name files of the server.

    Raises:
        VocabularyError: a name is a duplicate, or the text cannot be understood.
        SettingError: there are no words, or too many.
    """
    text = text.strip()
    if not text:
        raise SettingError("no words: type what to look for, as in dog, park bench, grass:stuff")
    if len(text) > _MOST_LETTERS:
        raise SettingError(f"the words have {len(text)} characters, the page takes up to {_MOST_LETTERS}")
    if text.startswith("[") and _NOT_IN_LISTS.search(text):
        raise SettingError("a list in brackets cannot contain & and *: write one class per line instead")
    # no file's name starts with a line break
    found = load_vocabulary(text if text in packaged_vocabularies() else f"\n{text}", one_word=True)
    names = sum(map(len, found.labels))
    if names > MOST_NAMES:
        raise SettingError(
            f"{names} words and synonyms, the page takes up to {MOST_NAMES}: use odise predict for more"
        )
    return found
