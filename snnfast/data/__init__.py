"""Real data in, tensors out: :func:`digits`, by name with :func:`load_data`."""

import difflib

from snnfast.data.digits import digits
from snnfast.data.images import ImageData, random_shift

__all__ = ["ImageData", "digits", "list_data", "load_data", "random_shift"]

_DATA = {"digits": digits}


def list_data() -> list[str]:
    """Names of the data sets."""
    return sorted(_DATA)


def load_data(name: str, **sizes) -> ImageData:
    """The data set of that name. Raises ValueError for unknown names, ImportError for packages."""
    if name not in _DATA:
        near = difflib.get_close_matches(str(name), _DATA, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"load_data: name must be one of {', '.join(list_data())}, got {name!r}{hint}"
        )
    return _DATA[name](**sizes)
