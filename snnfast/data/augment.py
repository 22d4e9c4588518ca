"""Augmentations by name."""

import difflib
import re
from collections.abc import Sequence

from snnfast.data.autoaugment import AutoAugment
from snnfast.data.base import Augment, Transform
from snnfast.data.transforms import Cutout, EventPolicy, Flip, Normalise, Shift

RESIZED_CROP = "resizedcrop"  # done where images are decoded
_FIXED = {"flip": Flip, "autoaugment": AutoAugment, "events": EventPolicy}
_SIZED = {"crop": Shift, "shift": Shift, "cutout": Cutout}
_EXAMPLES = ("crop4", "shift2", "cutout16", *_FIXED)


def transform(set_name: str, name: str, others: Sequence[str] = ()) -> Transform:
    """The transform of that name: flip, autoaugment, events, or crop, shift and cutout with their
    pixels, as in "crop4". Raises ValueError, naming the data set, for anything else; ``others`` are
    names that the set has besides."""
    if name in _FIXED:
        return _FIXED[name]()
    sized = re.fullmatch(r"([a-z]+)(\d+)", name) if isinstance(name, str) else None
    if sized and sized[1] in _SIZED:
        return _SIZED[sized[1]](int(sized[2]))
    known = (*others, *_EXAMPLES)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(
        f"{set_name}: augment must name some of {', '.join(known)}, got {name!r}{hint}"
    )


def pipelines(
    set_name: str,
    names: Sequence[str],
    normalise: Normalise | None,
    *,
    decoding: Sequence[str] = (),
    channels: int = 3,
) -> tuple[Augment, Augment]:
    """What training batches and what test batches go through, in the order given, normalised last.

    Names in ``decoding`` are left out: that set does them while it reads.
    """
    if isinstance(names, str):
        raise ValueError(f"{set_name}: augment must be a list of names, got {names!r}")
    if channels != 3 and "autoaugment" in names:
        raise ValueError(
            f"{set_name}: autoaugment needs images of 3 channels, these have {channels}"
        )
    last = () if normalise is None else (normalise,)
    chosen = [transform(set_name, name, decoding) for name in names if name not in decoding]
    return Augment((*chosen, *last)), Augment(last)
