"""Augmentations of a batch on its device, each image by its own draws.

Images are floating point [..., B, C, H, W]; leading dimensions are time, and all frames of a
sequence get what its sample drew.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Draws = dict[str, Tensor]


class _AsDrawn:
    """Transforms whose draws need no arrangement."""

    def arrange(self, draws: Draws) -> Draws:
        return draws


def windows(padded: Tensor, corner: Tensor, height: int, width: int) -> Tensor:
    """out[..., b, :, :, :]: height x width pixels of ``padded`` [..., B, C, H, W] from the corner
    (row, column) ``corner[b]``, int64 [B, 2] on the same device."""
    views = padded.unfold(-2, height, 1).unfold(-2, width, 1).movedim(-6, 0)  # [B, ..., h, w]
    sample = torch.arange(len(corner), device=padded.device)
    out = views.movedim((-4, -3), (1, 2))[sample, corner[:, 0], corner[:, 1]]
    return out.movedim(0, -4)


def affine(images: Tensor, matrix: Tensor, fill: float = 0.0) -> Tensor:
    """The nearest pixel under an affine map of pixel centres, ``fill`` outside.

    ``matrix`` float64 [B, 6] (a, b, c, d, e, f), on the images' device: the output pixel at (x, y)
    shows the input at (a x + b y + c, d x + e y + f), x and y counted from the corner. Computed in
    whole parts of 65536, as PIL does, so that every device takes the same pixel where two are
    equally near.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    a, b, c, d, e, f = matrix.double().unbind(1)
    parts = torch.stack([a, b, c + 0.5 * (a + b), d, e, f + 0.5 * (d + e)])
    parts = (parts * 65536 + 0.5).floor().long()[:, :, None, None]
    columns = (parts[0] * x + parts[1] * y + parts[2]) >> 16
    rows = (parts[3] * x + parts[4] * y + parts[5]) >> 16
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    at = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    at = at.flatten(1)[:, None].expand(*images.shape[:-2], -1)
    moved = images.flatten(-2).gather(-1, at).view_as(images)
    return torch.where(inside[:, None], moved, fill)


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """Matrices [B, 6] of :func:`affine` that turn images counterclockwise about their centre;
    ``degrees`` [B]."""
    angle = degrees.double() * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    terms = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]
    return torch.stack(terms, 1)


@dataclass(frozen=True)
class Shift(_AsDrawn):
    """Every image moved by -pixels .. pixels in both directions; 0 comes in. The same as a crop at
    a random place after padding by ``pixels``."""

    pixels: int

    def draw(self, n: int, generator: Generator) -> Draws:
        return {"corner": torch.randint(0, 2 * self.pixels + 1, (n, 2), generator=generator)}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        padded = F.pad(images, (self.pixels,) * 4)
        return windows(padded, draws["corner"], *images.shape[-2:])


@dataclass(frozen=True)
class Flip(_AsDrawn):
    """Left and right changed in half of the images."""

    def draw(self, n: int, generator: Generator) -> Draws:
        return {"flip": torch.rand(n, generator=generator) < 0.5}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        flip = draws["flip"][:, None, None, None]
        return torch.where(flip, images.flip(-1), images)


@dataclass(frozen=True)
class Cutout(_AsDrawn):
    """A square of zeros, side ``size``, about a pixel drawn from the whole image: what reaches over
    the border is cut off (DeVries and Taylor, arXiv 1708.04552)."""

    size: int

    def draw(self, n: int, generator: Generator) -> Draws:
        return {"centre": torch.rand(n, 2, generator=generator)}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        return _hidden(images, draws["centre"], self.size)


@dataclass(frozen=True)
class Normalise:
    """(x - mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def draw(self, n: int, generator: Generator) -> Draws:
        return {}

    def arrange(self, draws: Draws) -> Draws:
        values = {"mean": self.mean, "std": self.std}
        return {name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        mean, std = (draws[name].to(images.dtype)[:, None, None] for name in ("mean", "std"))
        return (images - mean) / std


@dataclass(frozen=True)
class EventPolicy:
    """One of three for every sample, the same for its frames: rolled by up to ``roll`` pixels in
    both directions, turned by up to ``degrees``, or a square of zeros of side ``cutout``: the
    augmentation of event frames after Li et al. (ECCV 2022, arXiv 2203.06145)."""

    roll: int = 5
    degrees: float = 30.0
    cutout: int = 16

    def draw(self, n: int, generator: Generator) -> Draws:
        return {
            "choice": torch.randint(0, 3, (n,), generator=generator),
            "roll": torch.randint(-self.roll, self.roll + 1, (n, 2), generator=generator),
            "degrees": self.degrees * (2 * torch.rand(n, generator=generator) - 1),
            "centre": torch.rand(n, 2, generator=generator),
        }

    def arrange(self, draws: Draws) -> Draws:
        """The samples of each kind, and their draws."""
        chosen = [(draws["choice"] == choice).nonzero()[:, 0] for choice in range(3)]
        own = {name: draws[name][at] for name, at in zip(("roll", "degrees", "centre"), chosen)}
        return dict(zip(("rolled", "turned", "hidden"), chosen)) | own

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[-2:]
        out = images.clone()
        for name, run in (
            ("rolled", lambda part: _rolled(part, draws["roll"], self.roll)),
            ("turned", lambda part: affine(part, rotation(draws["degrees"], height, width))),
            ("hidden", lambda part: _hidden(part, draws["centre"], self.cutout)),
        ):
            chosen = draws[name]
            if len(chosen):
                out[..., chosen, :, :, :] = run(images[..., chosen, :, :, :])
        return out


def _rolled(images: Tensor, by: Tensor, most: int) -> Tensor:
    """Every image rolled by ``by`` [B, 2], at most ``most`` rows down and columns to the right."""
    for axis in (-2, -1):
        side = images.shape[axis]
        ends = (images.narrow(axis, side - most, most), images, images.narrow(axis, 0, most))
        images = torch.cat(ends, axis)
    return windows(images, most - by, *(side - 2 * most for side in images.shape[-2:]))


def _hidden(images: Tensor, centre: Tensor, size: int) -> Tensor:
    """Images with a square of zeros about ``centre`` [B, 2], which is in parts of the sides."""
    sides = images.shape[-2:]
    rows, columns = (
        torch.arange(side, device=images.device)
        - (centre[:, axis, None] * side).floor().long()
        + size // 2
        for axis, side in enumerate(sides)
    )
    rows, columns = ((at >= 0) & (at < size) for at in (rows, columns))
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
