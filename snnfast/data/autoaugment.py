"""AutoAugment's policy for CIFAR-10 (Cubuk et al., CVPR 2019, arXiv 1805.09501), batched.

Every image draws one of 25 pairs of operations, whether each of the two is done, and its sign. The
images of a batch that do the same operation do it together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from snnfast.data import grey
from snnfast.data.transforms import Draws, affine, rotation

FILL = 128.0  # grey level of what comes in from outside
BINS = 10
# Two operations of every pair, each with its probability in tenths and its magnitude, 0..9.
POLICY = (
    (("invert", 1, 7), ("contrast", 2, 6)),
    (("rotate", 7, 2), ("translate_x", 3, 9)),
    (("sharpness", 8, 1), ("sharpness", 9, 3)),
    (("shear_y", 5, 8), ("translate_y", 7, 9)),
    (("autocontrast", 5, 8), ("equalize", 9, 2)),
    (("shear_y", 2, 7), ("posterize", 3, 7)),
    (("color", 4, 3), ("brightness", 6, 7)),
    (("sharpness", 3, 9), ("brightness", 7, 9)),
    (("equalize", 6, 5), ("equalize", 5, 1)),
    (("contrast", 6, 7), ("sharpness", 6, 5)),
    (("color", 7, 7), ("translate_x", 5, 8)),
    (("equalize", 3, 7), ("autocontrast", 4, 8)),
    (("translate_y", 4, 3), ("sharpness", 2, 6)),
    (("brightness", 9, 6), ("color", 2, 8)),
    (("solarize", 5, 2), ("invert", 0, 3)),
    (("equalize", 2, 0), ("autocontrast", 6, 0)),
    (("equalize", 2, 8), ("equalize", 6, 4)),
    (("color", 9, 9), ("equalize", 6, 6)),
    (("autocontrast", 8, 4), ("solarize", 2, 8)),
    (("brightness", 1, 3), ("color", 7, 0)),
    (("solarize", 4, 5), ("autocontrast", 9, 3)),
    (("translate_y", 9, 9), ("translate_y", 7, 9)),
    (("autocontrast", 9, 2), ("solarize", 8, 3)),
    (("equalize", 8, 8), ("invert", 1, 3)),
    (("translate_y", 7, 9), ("autocontrast", 9, 1)),
)


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    return affine(images, rotation(strength, *images.shape[-2:]), FILL)


def _shear_y(images: Tensor, strength: Tensor) -> Tensor:
    return affine(images, _matrix(strength, d=strength), FILL)


def _translate_x(images: Tensor, strength: Tensor) -> Tensor:
    return affine(images, _matrix(strength, c=strength * images.shape[-1]), FILL)


def _translate_y(images: Tensor, strength: Tensor) -> Tensor:
    return affine(images, _matrix(strength, f=strength * images.shape[-2]), FILL)


def _matrix(like: Tensor, **entries: Tensor) -> Tensor:
    """The unit map [B, 6] of :func:`affine` with some of its entries, a to f, replaced."""
    unit = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 1.0, "f": 0.0}
    columns = (torch.full_like(like, value) for value in unit.values())
    return torch.stack([entries.get(name, one) for name, one in zip(unit, columns)], 1)


@dataclass(frozen=True)
class Operation:
    """``run(images, strength)`` with strength start + sign * (stop - start) * magnitude / 9, the
    sign being drawn where ``signed``, rounded where ``whole``."""

    run: Callable[[Tensor, Tensor], Tensor]
    start: float = 0.0
    stop: float = 0.0
    signed: bool = False
    whole: bool = False

    def strength(self, magnitude: Tensor, sign: Tensor) -> Tensor:
        """Float64 [B]; ``magnitude`` 0..9, ``sign`` -1 or 1, float64 [B]."""
        reach = (self.stop - self.start) * magnitude / (BINS - 1)
        value = self.start + reach * (sign if self.signed else 1)
        return value.round() if self.whole else value


OPERATIONS = {
    "rotate": Operation(_rotate, 0, 30, signed=True),
    "shear_y": Operation(_shear_y, 0, 0.3, signed=True),
    "translate_x": Operation(_translate_x, 0, 150 / 331, signed=True),
    "translate_y": Operation(_translate_y, 0, 150 / 331, signed=True),
    "posterize": Operation(grey.posterize, 8, 4, whole=True),
    "solarize": Operation(grey.solarize, 256, 0),
    "color": Operation(grey.color, 1, 1.9, signed=True),
    "contrast": Operation(grey.contrast, 1, 1.9, signed=True),
    "brightness": Operation(grey.brightness, 1, 1.9, signed=True),
    "sharpness": Operation(grey.sharpness, 1, 1.9, signed=True),
    "autocontrast": Operation(grey.autocontrast),
    "equalize": Operation(grey.equalize),
    "invert": Operation(grey.invert),
}


@dataclass(frozen=True)
class AutoAugment:
    """The policy, on float images [B, 3, H, W] in 0..1, which are rounded to 256 levels."""

    def draw(self, n: int, generator: Generator) -> Draws:
        return {
            "pair": torch.randint(0, len(POLICY), (n,), generator=generator),
            "chance": torch.rand(n, 2, generator=generator),
            "sign": torch.randint(0, 2, (n, 2), generator=generator),
        }

    def arrange(self, draws: Draws) -> dict[str, Tensor | list]:
        """Of either turn, what :func:`_sorted` gives."""
        return {
            f"{name}{turn}": value
            for turn in range(2)
            for name, value in zip(("order", "groups", "strength"), _sorted(draws, turn))
        }

    def apply(self, images: Tensor, draws: dict[str, Tensor | list]) -> Tensor:
        levels = (images * 255).round_()
        for turn in range(2):
            order, strength = draws[f"order{turn}"], draws[f"strength{turn}"]
            chosen = levels[order]
            for operation, first, last in draws[f"groups{turn}"]:
                part = slice(first, last)
                chosen[part] = operation.run(chosen[part], strength[part])
            levels[order] = chosen
        return levels.div_(255)


def _sorted(draws: Draws, turn: int) -> tuple[Tensor, list[tuple[Operation, int, int]], Tensor]:
    """The images that do something in this turn, those of one operation side by side.

    Their numbers [n], the operations with the first and last + 1 of their places, and the strengths
    float64 [n].
    """
    names = list(OPERATIONS)
    steps = [pair[turn] for pair in POLICY]
    kinds = torch.tensor([names.index(name) for name, _, _ in steps])[draws["pair"]]
    tenths = torch.tensor([tenths for _, tenths, _ in steps])[draws["pair"]]
    magnitudes = torch.tensor([magnitude for _, _, magnitude in steps])[draws["pair"]].double()
    signs = draws["sign"][:, turn].double() * 2 - 1
    idle = draws["chance"][:, turn] >= tenths / 10
    kinds = kinds.masked_fill(idle, len(names))
    order = kinds.argsort(stable=True)
    groups, strengths, first = [], [torch.empty(0, dtype=torch.float64)], 0
    for name, count in zip(names, torch.bincount(kinds, minlength=len(names)).tolist()):
        if count:
            members = order[first : first + count]
            groups.append((OPERATIONS[name], first, first + count))
            strengths.append(OPERATIONS[name].strength(magnitudes[members], signs[members]))
            first += count
    return order[:first], groups, torch.cat(strengths)
