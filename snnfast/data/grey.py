"""Operations on pixel values, batched, each image with its own strength.

Images are float32 [B, C, H, W] that hold the whole numbers 0..255, C = 3; ``strength`` is [B]. The
results are whole numbers again, rounded as an image library of 8 bits does it: down, where two
images are blended.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 256
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in parts of 65536


def _blend(images: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """other + strength * (images - other), in range, rounded down."""
    mixed = other + strength.to(images.dtype)[:, None, None, None] * (images - other)
    return mixed.clamp(0, LEVELS - 1).floor()


def _luma(images: Tensor) -> Tensor:
    """Brightness [B, 1, H, W]; all terms are exact in float32."""
    red, green, blue = (
        weight * channel for weight, channel in zip(_LUMA, images.unbind(1), strict=True)
    )
    return ((red + green + blue + 32768) / 65536).floor()[:, None]


def invert(images: Tensor, strength: Tensor) -> Tensor:
    """255 - x; ``strength`` plays no part."""
    return LEVELS - 1 - images


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """255 - x from ``strength`` upwards."""
    return torch.where(images < strength[:, None, None, None], images, LEVELS - 1 - images)


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """The upper ``strength`` bits alone."""
    step = (1 << (8 - strength.long()))[:, None, None, None]
    return (images / step).floor() * step


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    """Blended with black: 0 is black, 1 the image."""
    return _blend(images, torch.zeros_like(images), strength)


def color(images: Tensor, strength: Tensor) -> Tensor:
    """Blended with its brightness: 0 is grey, 1 the image."""
    return _blend(images, _luma(images), strength)


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    """Blended with its mean brightness: 0 is one grey, 1 the image."""
    mean = _luma(images).mean((1, 2, 3), keepdim=True).add(0.5).floor()
    return _blend(images, mean, strength)


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Blended with a smoothed one: 0 is smooth, 1 the image. The outermost pixels stay."""
    near = F.avg_pool2d(images, 3, stride=1) * 9
    smooth = images.clone()
    centre = images[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = ((near + 4 * centre) / 13 + 0.5).floor()
    return _blend(images, smooth, strength)


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Every channel stretched to 0..255; ``strength`` plays no part."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = ((images - low) * (LEVELS - 1) / (high - low).clamp_min(1)).floor()
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Every channel's values spread to a flat histogram; ``strength`` plays no part.

    A value becomes (half a step + the number of darker pixels) // step, a step being 1/255 of the
    pixels that are not the brightest.
    """
    values = images.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], LEVELS)
    counts.scatter_add_(2, values, torch.ones_like(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // (LEVELS - 1)
    darker = counts.cumsum(2) - counts
    table = ((step // 2 + darker) // step.clamp_min(1)).clamp_max(LEVELS - 1)
    spread = table.gather(2, values).view_as(images).to(images.dtype)
    return torch.where(step[..., None] > 0, spread, images)
