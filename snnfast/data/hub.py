"""Image sets through the Hugging Face package ``datasets``, by name or from a copy on disk."""

from pathlib import Path

import torch
from torch import Tensor

from snnfast.data.extras import seen
from snnfast.data.pictures import decode
from snnfast.packages import require


class Table:
    """Images and labels of one split, decoded one by one."""

    def __init__(self, name: str, rows, image: str, label: str):
        datasets = require("datasets", "hub")
        self.name = name
        self.classes = rows.features[label].names
        self.targets: Tensor = torch.tensor(rows[label][:], dtype=torch.int64)
        if len(self.targets) and self.targets.min() < 0:
            raise ValueError(f"{name} has samples without a label")
        # Undecoded: what decodes may differ from one installation to the next.
        self._column = image
        self._rows = rows.cast_column(image, datasets.Image(decode=False)).select_columns([image])

    def __len__(self) -> int:
        return len(self.targets)

    def label_of(self, index: int) -> str:
        """What messages call a sample."""
        return f"{self.name}[{index}]"

    def image(self, index: int):
        """A PIL image in RGB; raises DataError where it cannot be decoded."""
        cell = self._rows[index][self._column]
        return decode(
            cell["path"] if cell["bytes"] is None else cell["bytes"], self.label_of(index)
        )


def table(name: str, published: str, root: str | Path, source: str, split: str) -> Table:
    """One split of an image set, called ``split`` there.

    ``source`` is "hub" for the set's ``published`` name or "hub:OWNER/NAME" for another one. A copy
    under ``root`` is used instead where there is one: what ``save_to_disk`` wrote, or Parquet files
    whose names begin with their split (train-00000-of-00001.parquet), there or in data/. Raises
    ValueError for another source or a set without that split, FileNotFoundError where there is no
    such set, ImportError without ``datasets``.
    """
    kind, _, wanted = source.partition(":")
    if kind != "hub":
        raise ValueError(f"{name}: source must be files, hub or hub:OWNER/NAME, got {source!r}")
    datasets = require("datasets", "hub")
    wanted, root = wanted or published, Path(root)
    try:
        if (root / "dataset_dict.json").is_file():
            origin, splits = str(root), datasets.load_from_disk(str(root))
        elif files := _parquet(root):
            origin = str(root)
            splits = datasets.load_dataset("parquet", data_files=files)
        else:
            origin, splits = wanted, datasets.load_dataset(wanted)
    except Exception as error:  # of the network, of the cache, of the files
        raise FileNotFoundError(
            f"{name}: {wanted!r} cannot be had from the hub ({error}): save a copy under "
            f"{root.resolve()} with save_to_disk, or use source=files"
        ) from error
    if split not in splits:
        raise ValueError(f"{name}: {origin} must have a split {split}, got {', '.join(splits)}")
    rows = splits[split]
    image = next((c for c, f in rows.features.items() if isinstance(f, datasets.Image)), None)
    labels = [c for c, f in rows.features.items() if isinstance(f, datasets.ClassLabel)]
    label = "fine_label" if "fine_label" in labels else next(iter(labels), None)
    if image is None or label is None:
        raise ValueError(
            f"{name}: {origin} must have a column of images and one of class labels, got "
            f"{', '.join(rows.features)}"
        )
    return Table(f"{origin}/{split}", rows, image, label)


def _parquet(root: Path) -> dict[str, list[str]]:
    """Parquet files in ``root`` by split."""
    files: dict[str, list[str]] = {}
    for path in seen([*root.glob("*.parquet"), *root.glob("data/*.parquet")]):
        files.setdefault(path.stem.split("-")[0], []).append(str(path))
    return files
