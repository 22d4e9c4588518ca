"""PIL images decoded, cut and scaled to squares."""

import io
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snnfast.data.base import DataError
from snnfast.data.extras import regular
from snnfast.packages import require

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MOST = 2**30  # bytes of a file
_EIGHT = ((np.arange(2**16) + 128) // 257).astype(np.uint8)  # 16 bits of grey, rounded to 8
_WIDE = ("PNG", "PPM")  # 16 bits, where PIL calls them 32
CROPPED = 224 / 256  # of the shorter side, in testing
LONGEST = 8  # sides of which the middle is scaled, in shorter ones


def decode(content: bytes | str | Path, name: str):
    """A PIL image in RGB from a file or from its bytes; DataError, naming it, where that fails.

    Grey levels of 16 bits are rounded to 8. Refused are pixels without a known range (float, or of
    32 bits), grey TIFFs of 12 bits or of 16 with white as 0, and more pixels than
    ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    pil = require("PIL.Image")
    try:
        if not isinstance(content, bytes):  # all of it: decoders ask a file for what lengths say
            content = regular(content, MOST).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            opened = pil.open(io.BytesIO(content), formats=FORMATS)
        with opened:
            wide = opened.mode.startswith("I;16")
            wide |= opened.mode == "I" and opened.format in _WIDE
            if opened.mode in ("I", "F") and not wide:
                raise ValueError(
                    f"levels of 8 or 16 bits expected, got 32 bits (mode {opened.mode} in a "
                    f"{opened.format}), which do not say what is white"
                )
            if wide and opened.format == "TIFF":
                tags, bits, white = opened.tag_v2, 258, 262  # BitsPerSample, Photometric...
                if tags.get(bits, (16,)) not in (16, (16,)) or tags.get(white, 1) != 1:
                    raise ValueError(
                        "grey levels of 16 bits with black as 0 expected, got "
                        f"{tags.get(bits)} bits and photometric interpretation {tags.get(white)}"
                    )
            if wide:
                opened = pil.fromarray(_EIGHT[np.asarray(opened)])
            return opened.convert("RGB")
    except Exception as error:  # decoders raise errors of nearly every type
        reason = str(error) or type(error).__name__
        if isinstance(error, pil.UnidentifiedImageError):  # which names a place in memory
            reason = f"it is none of {', '.join(FORMATS)}"
        raise DataError(f"{name} cannot be decoded: {reason}") from error


def to_tensor(image) -> Tensor:
    """A PIL image in RGB as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resized_crop(image, size: int, random: np.random.Generator):
    """A part of the image, scaled to size x size: 8 to 100 % of its area and of a ratio of sides
    from 3/4 to 4/3, at a random place (Szegedy et al., CVPR 2015, arXiv 1409.4842)."""
    width, height = image.size
    for _ in range(10):
        area = random.uniform(*AREA) * width * height
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.integers(width - w + 1), random.integers(height - h + 1)
            break
    else:  # very long images: the middle, as much of it as the ratios allow
        w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        left, top = (width - w) // 2, (height - h) // 2
    part = image.crop((int(left), int(top), int(left) + w, int(top) + h))
    return part.resize((size, size), require("PIL.Image").Resampling.BILINEAR)


def shorter_side(size: int) -> int:
    """Pixels to which :func:`centre_crop` scales the shorter side of a test image."""
    return round(size / CROPPED)


def centre_crop(image, size: int, short: int):
    """The middle, size x size, of the image scaled so that its shorter side is ``short``. An image
    that is size x size is left as it is."""
    if image.size == (size, size):
        return image
    # The ends of a long, narrow image go first: scaled, they could be gigabytes.
    ends = [max(0, side - LONGEST * min(image.size)) // 2 for side in image.size]
    image = image.crop((*ends, *(side - end for side, end in zip(image.size, ends))))
    width, height = (max(short, int(short * side / min(image.size))) for side in image.size)
    image = image.resize((width, height), require("PIL.Image").Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
