"""Tiny files in the formats in which the data sets are published."""

import pickle

import numpy as np
from event_files import (
    write_caltech,
    write_cifar10_dvs,
    write_dvs_gesture,
    write_frames,
    write_n_mnist,
)

CIFAR = {
    10: ("cifar-10-batches-py", "cifar-10-batches-bin"),
    100: ("cifar-100-python", "cifar-100-binary"),
}


def cifar_images(classes, split, per_class=1):
    """Pixels uint8 [N, 3072] and labels of every class in turn, for one split."""
    random = np.random.default_rng([classes, split == "test"])
    count = classes * per_class
    return random.integers(0, 256, (count, 3072), dtype=np.uint8), np.arange(count) % classes


def cifar_files(classes):
    """The published files by split."""
    if classes == 10:
        return {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return {"train": ["train"], "test": ["test"]}


def write_cifar(root, classes=10, per_class=5, binary=False):
    """CIFAR-10 or CIFAR-100 under ``root``, with ``per_class`` images of every class and split."""
    folder = root / CIFAR[classes][binary]
    folder.mkdir(parents=True)
    for split, files in cifar_files(classes).items():
        pixels, labels = cifar_images(classes, split, per_class)
        for name, part, known in zip(
            files, np.array_split(pixels, len(files)), np.array_split(labels, len(files))
        ):
            if binary:
                columns = [known] if classes == 10 else [known // 5, known]
                records = np.column_stack([*columns, part]).astype(np.uint8)
                (folder / f"{name}.bin").write_bytes(records.tobytes())
                continue
            key = "labels" if classes == 10 else "fine_labels"
            content = {"batch_label": name, key: known.tolist(), "data": part}
            with (folder / name).open("wb") as file:
                pickle.dump(content, file, protocol=2)
    return folder


def write_images(root, splits=("train", "val"), classes=3, per_class=4, size=(40, 30), kind="png"):
    """A folder of class folders per split; every image is smooth noise of its own."""
    from PIL import Image

    for split in splits:
        for label in range(classes):
            folder = root / split / f"n{label:03d}"
            folder.mkdir(parents=True)
            for number in range(per_class):
                random = np.random.default_rng([label, number, split == splits[0]])
                small = random.integers(0, 256, (5, 4, 3), dtype=np.uint8)
                image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
                image.save(folder / f"{number:03d}.{kind}")
    return root


def write_data(name, root):
    """A few samples of every class of the data set ``name`` under ``root``, to be loaded from
    there; "digits" has no files."""
    writers = {
        "cifar10": lambda: write_cifar(root, 10),
        "cifar100": lambda: write_cifar(root, 100, per_class=1),
        "imagenet": lambda: write_images(root, kind="jpeg"),
        "folder": lambda: write_images(root, splits=("train", "test")),
        "cifar10_dvs": lambda: write_cifar10_dvs(root),
        "dvs_gesture": lambda: write_dvs_gesture(root),
        "n_mnist": lambda: write_n_mnist(root),
        "n_caltech101": lambda: write_caltech(root, per_class=20),
        "event_frames": lambda: write_frames(root, ("a", "b"), 60, timesteps=10),
        "digits": lambda: None,
    }
    writers[name]()
    return root
