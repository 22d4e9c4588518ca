"""Real data in, tensors out: :func:`load_data`, by name."""

import difflib
import inspect

import torch

from snnfast.data import encode
from snnfast.data.base import IGNORED, Augment, Data, DataError, Split, TensorSplit, Transform
from snnfast.data.cifar import cifar10, cifar100
from snnfast.data.digits import digits
from snnfast.data.events import cifar10_dvs, dvs_gesture
from snnfast.data.folder import folder, imagenet
from snnfast.data.neuromorphic import event_frames, n_caltech101, n_mnist, shd

__all__ = [
    "IGNORED",
    "Augment",
    "Data",
    "DataError",
    "Split",
    "TensorSplit",
    "Transform",
    "data_options",
    "encode",
    "list_data",
    "load_data",
]

_DATA = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cifar10_dvs": cifar10_dvs,
    "digits": digits,
    "dvs_gesture": dvs_gesture,
    "event_frames": event_frames,
    "folder": folder,
    "imagenet": imagenet,
    "n_caltech101": n_caltech101,
    "n_mnist": n_mnist,
    "shd": shd,
}


def list_data() -> list[str]:
    """Names of the data sets."""
    return sorted(_DATA)


def data_options(name: str) -> list[str]:
    """Names of the options that the data set has, besides ``device``; ValueError as below."""
    options = inspect.signature(_loader(name)).parameters
    return sorted(set(options) - {"device"})


def load_data(name: str, device: str | torch.device = "cpu", **options) -> Data:
    """The data set of that name; its batches are on ``device``.

    Raises ValueError for an unknown name, an option that the set does not have or a value that it
    does not take, FileNotFoundError for missing files, DataError for files that cannot be read, and
    ImportError where an optional package is missing.
    """
    loader, known = _loader(name), data_options(name)
    for option in options:
        if option not in known:
            raise ValueError(
                f"load_data: {name} has no option {option!r}{_hint(option, known)}: "
                f"it has {', '.join(known)}"
            )
    return loader(device=device, **options)


def _loader(name: str):
    if name not in _DATA:
        raise ValueError(
            f"load_data: name must be one of {', '.join(list_data())}, got {name!r}"
            f"{_hint(name, _DATA)}"
        )
    return _DATA[name]


def _hint(name: str, known) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
