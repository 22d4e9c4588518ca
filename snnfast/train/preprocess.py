"""What a trained network wants its images to be: what the test images of its data set were."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from snnfast.data import data_options
from snnfast.data.base import Augment, Data
from snnfast.data.known import CLASSES, NORMALISE
from snnfast.data.pictures import centre_crop, shorter_side, to_tensor
from snnfast.data.transforms import Normalise
from snnfast.packages import require
from snnfast.train.checkpoint import CheckpointError
from snnfast.train.config import ConfigError, DataConfig

KEY, FILE = "preprocess", "preprocess.json"  # in the header of the weights, and in the run

Pixels = Annotated[int, Field(ge=1)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocess(BaseModel):
    """Images as a trained network takes them: what ``snnfast.load`` gives as ``model.preprocess``.

        >>> model = snnfast.load("runs/c100")
        >>> logits = model(model.preprocess(PIL.Image.open("cat.jpg")))  # [T, 1, classes]

    Every image becomes what its data set's test transform makes of the same pixels, to the bit: in
    as many channels as the network has, scaled so that its shorter side is ``resize`` pixels
    (bilinear, antialiased), cut to the middle ``size`` x ``size`` (an image of that size is left as
    it is), brought to 0..1, and normalised by ``mean`` and ``std``, one number a channel.

    For networks trained on event recordings (``frames``) the input is a sequence of counts
    [T, C, size, size] or [T, B, C, size, size] of any real dtype, which stays as it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    channels: Pixels
    size: Pixels
    resize: Pixels
    mean: tuple[Mean, ...]
    std: tuple[Deviation, ...]
    frames: bool
    classes: tuple[str, ...] | None

    def __call__(self, images) -> Tensor:
        """``images`` ready for the model: float32 [B, C, size, size].

        One image or a batch of any size of pixels:

        - PIL images of 8 bits a channel, in any mode;
        - NumPy arrays [H, W], [H, W, C] or [B, H, W, C], channels last;
        - tensors [C, H, W] or [B, C, H, W], on the device of which the result is;
        - lists and tuples of these.

        Arrays and tensors are uint8 with values 0..255 or floating point with values 0..1, of 1 or
        3 channels. Colours become grey or grey becomes three channels as the network needs it; of
        floating point the number of channels must be the network's.

        Sequences (``frames``) are arrays or tensors and become float32 [T, B, C, size, size].

        Raises TypeError or ValueError for anything else.
        """
        if self.frames:
            return self._sequence(images)
        if isinstance(images, list | tuple):
            if not images:
                raise ValueError("preprocess: images must be one or more, got none")
            try:
                return torch.cat([self(image) for image in images])
            except RecursionError:
                raise ValueError("preprocess: lists must not hold themselves") from None
        pixels = self._pixels(images)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().div_(255)
        return Augment([Normalise(self.mean, self.std)])(pixels, seed=0)

    def _pixels(self, images) -> Tensor:
        """uint8 or float32 [B, C, size, size] of what is no list."""
        if isinstance(images, np.ndarray):
            if images.ndim not in (2, 3, 4):
                raise ValueError(
                    "preprocess: an array must be [H, W], [H, W, C] or [B, H, W, C], got "
                    f"{list(images.shape)}"
                )
            images = images[..., None] if images.ndim == 2 else images
            images = _tensor(images).movedim(-1, -3)
        if not isinstance(images, Tensor):
            return self._cut(images)[None]
        _check_memory(images)
        if images.dim() not in (3, 4) or images.numel() == 0:
            raise ValueError(
                "preprocess: a tensor must be [C, H, W] or [B, C, H, W], none of them 0, got "
                f"{list(images.shape)}"
            )
        batch = images if images.dim() == 4 else images[None]
        channels = (self.channels,) if batch.is_floating_point() else (1, 3)
        if batch.shape[1] not in channels:
            raise ValueError(
                f"preprocess: {_kind(batch)} images must have {' or '.join(map(str, channels))} "
                f"channels, got {batch.shape[1]} of {list(images.shape)}"
            )
        if batch.dtype == torch.uint8:
            if batch.shape[1] == self.channels and batch.shape[2:] == (self.size, self.size):
                return batch
            pil = require("PIL.Image")
            made = [image.permute(1, 2, 0).cpu().numpy() for image in batch]
            made = [self._cut(pil.fromarray(m if m.shape[2] == 3 else m[..., 0])) for m in made]
            return torch.stack(made).to(batch.device)
        if not batch.is_floating_point():
            raise TypeError(
                f"preprocess: images must be uint8 or floating point, got {_kind(batch)}"
            )
        batch = batch.float()
        low, high = batch.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"preprocess: floating point images must be in 0..1, got {low:g} to {high:g}"
            )
        if batch.shape[2:] == (self.size, self.size):
            return batch
        pil = require("PIL.Image")
        planes = [pil.fromarray(plane.numpy()) for plane in batch.detach().cpu().flatten(0, 1)]
        planes = [torch.from_numpy(np.array(self._middle(plane))) for plane in planes]
        return torch.stack(planes).unflatten(0, batch.shape[:2]).to(batch.device)

    def _cut(self, image) -> Tensor:
        """uint8 [C, size, size] of a PIL image."""
        if not isinstance(image, require("PIL.Image").Image):
            raise TypeError(
                "preprocess: images must be PIL images, NumPy arrays, tensors or lists of them, "
                f"got {type(image).__name__}"
            )
        if image.mode[0] in "IF":
            raise ValueError(
                f"preprocess: PIL images must have 8 bits a channel, got mode {image.mode!r}: make "
                "them floating point arrays in 0..1"
            )
        if 0 in image.size:
            width, height = image.size
            raise ValueError(f"preprocess: PIL images must have pixels, got {width} x {height}")
        try:
            image = self._middle(image.convert("RGB"))
        except ValueError as error:
            raise ValueError(f"preprocess: PIL images must become RGB: {error}") from error
        if self.channels == 1:
            return torch.from_numpy(np.array(image.convert("L")))[None]
        return to_tensor(image)

    def _middle(self, image):
        return centre_crop(image, self.size, self.resize)

    def _sequence(self, frames) -> Tensor:
        frames = _tensor(frames) if isinstance(frames, np.ndarray) else frames
        expected = (self.channels, self.size, self.size)
        if not isinstance(frames, Tensor) or frames.is_complex():
            raise TypeError(
                "preprocess: this network takes frames of events, an array or a tensor "
                f"[T, {', '.join(map(str, expected))}] of counts, got {_kind(frames)}"
            )
        _check_memory(frames)
        if frames.dim() not in (4, 5) or tuple(frames.shape[-3:]) != expected:
            raise ValueError(
                "preprocess: frames must be [T, C, H, W] or [T, B, C, H, W] with [C, H, W] = "
                f"{list(expected)}, got {list(frames.shape)}"
            )
        return (frames if frames.dim() == 5 else frames[:, None]).float()


def of_data(data: Data) -> Preprocess:
    """What a data set does to its test images."""
    steps = [t for t in data.prepare.transforms if isinstance(t, Normalise)]
    resize = data.resize or data.image_size
    normalise, frames = (steps or [None])[0], data.timesteps is not None
    return _make(data.in_channels, data.image_size, resize, normalise, frames, data.classes)


def of_weights(found: Mapping, shape: Mapping[str, int], path: Path) -> Preprocess:
    """What the header of the weights in ``path`` holds as JSON. Raises CheckpointError where that
    is damaged or not of a network of this ``shape``."""
    try:
        found = Preprocess.model_validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: its {KEY} is damaged: {where} {first['msg']}") from None
    fits = (found.channels, found.size) == (shape["in_channels"], shape["image_size"])
    fits &= len(found.mean) == len(found.std) == found.channels
    fits &= found.size <= found.resize <= 2 * found.size
    fits &= found.classes is None or len(found.classes) == shape["num_classes"]
    if not fits:
        raise CheckpointError(f"{path}: its {KEY} is not that of its network: {shape}")
    return found


def of_config(config: DataConfig, shape: Mapping[str, int]) -> Preprocess:
    """That of a run of 0.1.0, which stored none, from its config. ``classes`` is None where their
    names are those of folders. Raises ConfigError for another data set."""
    try:
        data_options(config.name)
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    wanted = config.name != "digits" if config.normalise is None else config.normalise
    size = shape["image_size"]
    resize = shorter_side(size) if config.name in ("folder", "imagenet") else size
    normalise = NORMALISE.get(config.name) if wanted else None
    frames, classes = config.name not in NORMALISE, CLASSES.get(config.name)
    return _make(shape["in_channels"], size, resize, normalise, frames, classes)


def _make(channels, size, resize, normalise: Normalise | None, frames, classes) -> Preprocess:
    normalise = normalise or Normalise((0.0,) * channels, (1.0,) * channels)
    return Preprocess(
        channels=channels, size=size, resize=resize, mean=normalise.mean, std=normalise.std,
        frames=frames, classes=classes,
    )  # fmt: skip


def _tensor(array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise TypeError(
            f"preprocess: images must be uint8 or floating point, got {array.dtype}"
        ) from error


def _check_memory(images: Tensor) -> None:
    """Refuse tensors without a place in memory for each element."""
    if images.is_nested or images.layout != torch.strided or images.is_meta:
        kind = "nested" if images.is_nested else "meta" if images.is_meta else str(images.layout)
        kind = kind.removeprefix("torch.")
        raise TypeError(f"preprocess: a tensor must be dense and hold values, got a {kind} one")


def _kind(value) -> str:
    if isinstance(value, Tensor):
        return str(value.dtype).removeprefix("torch.")
    return type(value).__name__
