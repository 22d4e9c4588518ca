"""Folders of images, decoded by workers; sets of the hub's package from a copy on disk."""

import multiprocessing
import os
import re
import struct
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from data_files import cifar_images, write_images
from PIL import Image

from snnfast.data import IGNORED, DataError, load_data
from snnfast.data.pictures import decode


def read(split, order=None, size=5, seed=0):
    order = torch.arange(len(split)) if order is None else order
    images, targets = zip(*split.batches(order.split(size), seed=seed))
    return torch.cat(images), torch.cat(targets)


@pytest.mark.parametrize("inside", ["", "imagenet"])
def test_imagenet_sorted_folders_are_the_labels(tmp_path, inside):
    write_images(tmp_path / inside, classes=3, per_class=2, kind="jpeg")
    data = load_data("imagenet", root=tmp_path, workers=0)
    assert (data.num_classes, data.in_channels, data.image_size) == (3, 3, 224)
    for split in (data.train, data.test):
        images, targets = read(split)
        assert images.shape == (6, 3, 224, 224) and images.dtype == torch.float32
        assert targets.tolist() == [0, 0, 1, 1, 2, 2]
        assert 0 <= images.min() < 0.2 and 0.8 < images.max() <= 1
    ready = data.prepare(images, seed=0)
    torch.testing.assert_close(ready[:, 1], (images[:, 1] - 0.456) / 0.224)


@pytest.mark.parametrize("size", [(40, 30), (30, 47), (64, 64)])
def test_testing_scales_and_takes_the_middle(tmp_path, size):
    write_images(tmp_path, splits=("train", "test"), classes=1, per_class=1, size=size)
    split = load_data("folder", root=tmp_path, workers=0, image_size=28).test
    image = Image.open(tmp_path / "test" / "n000" / "000.png")
    short = 32 / min(size)
    image = image.resize([int(side * short) for side in size], Image.Resampling.BILINEAR)
    left, top = (round((side - 28) / 2) for side in image.size)
    expected = np.asarray(image)[top : top + 28, left : left + 28]
    (got, _) = read(split)
    assert torch.equal((got[0] * 255).round().byte().permute(1, 2, 0), torch.tensor(expected))


def test_images_of_the_right_size_are_left_alone(tmp_path):
    write_images(tmp_path, splits=("train", "valid"), classes=2, per_class=1, size=(32, 32))
    options = {"image_size": 32, "augment": ["crop4", "flip"]}
    data = load_data("folder", root=tmp_path, workers=0, **options)
    images, _ = read(data.train)
    for label in range(2):
        file = tmp_path / "train" / f"n{label:03d}" / "000.png"
        expected = torch.tensor(np.asarray(Image.open(file)))
        assert torch.equal((images[label] * 255).round().byte().permute(1, 2, 0), expected)


def test_a_sample_depends_on_seed_and_number_alone(tmp_path):
    write_images(tmp_path, per_class=4)
    results = {}
    state = torch.get_rng_state()
    for workers in (0, 2):
        split = load_data("imagenet", root=tmp_path, workers=workers, image_size=24).train
        results[workers] = read(split, size=5, seed=7)
        order = torch.tensor([11, 2, 5])
        images, targets = read(split, order, size=2, seed=7)
        assert torch.equal(images, results[workers][0][order])
        assert torch.equal(targets, results[workers][1][order])
    assert torch.equal(results[0][0], results[2][0])
    assert torch.equal(state, torch.get_rng_state()), "the caller's stream moved"
    other, _ = read(split, seed=8)
    assert (other != results[0][0]).flatten(1).any(1).all()


def test_resized_crops_are_parts_of_the_image(tmp_path):
    """A crop of a picture whose colours are its coordinates says where it came from."""
    y, x = np.mgrid[:120, :160]
    pixels = np.stack([x * 255 / 159, y * 255 / 119, 0 * x], -1).round().astype(np.uint8)
    for split in ("train", "test"):
        (tmp_path / split / "c").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / split / "c" / "0.png")
    split = load_data("folder", root=tmp_path, workers=0, image_size=16).train
    areas, ratios = [], []
    for seed in range(200):
        image = read(split, seed=seed)[0][0]
        width = (image[0, :, -1] - image[0, :, 0]).mean() * 160 * 16 / 15
        height = (image[1, -1] - image[1, 0]).mean() * 120 * 16 / 15
        areas.append((width * height / 160 / 120).item())
        ratios.append((width / height).item())
    assert 0.07 < min(areas) < 0.15 and 0.85 < max(areas) < 1.05
    assert 0.70 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.42


def damage(tmp_path, kind):
    write_images(tmp_path, classes=2, per_class=3, kind=kind)
    path = tmp_path / "train" / "n001" / f"001.{kind}"
    path.write_bytes(path.read_bytes()[:150])
    (tmp_path / "train" / "n000" / f"002.{kind}").write_bytes(b"no image")
    return str(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_stops_and_is_named(tmp_path, workers):
    damage(tmp_path, "png")
    split = load_data("imagenet", root=tmp_path, workers=workers, image_size=16).train
    with pytest.raises(DataError, match=r"n001.001\.png cannot be decoded: "):
        read(split, torch.tensor([0, 1, 4]))
    images, _ = read(split, torch.tensor([0, 1, 3]))
    assert len(images) == 3


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_corrupt_images_are_skipped_and_counted(tmp_path, kind):
    path = damage(tmp_path, kind)
    options = {"workers": 0, "image_size": 16, "on_error": "skip"}
    split = load_data("imagenet", root=tmp_path, **options).train
    with pytest.warns(UserWarning, match="cannot be decoded") as warned:
        images, targets = read(split, size=2)
        again, _ = read(split, seed=0)
    assert len(warned) == 1
    assert targets.tolist() == [0, 0, IGNORED, 1, IGNORED, 1]
    assert not images[[2, 4]].any() and images[[0, 1, 3, 5]].flatten(1).any(1).all()
    assert split.skipped == [str(tmp_path / "train" / "n000" / f"002.{kind}"), path]
    assert torch.equal(images, again)
    loss = torch.nn.functional.cross_entropy(torch.zeros(6, 2), targets)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


def one_image(root, image=None, name="0.png"):
    """A class of one good image for testing, and one for training with ``image``, if any."""
    write_images(root, classes=1, per_class=1, size=(32, 32))
    path = root / "train" / "n000" / name
    if image is not None:
        (root / "train" / "n000" / "000.png").unlink()
        image.save(path)
    return path


def small(root, **options):
    return load_data(
        "imagenet", root=root, **{"workers": 0, "image_size": 32, "augment": []} | options
    )


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_16_bits_of_grey_become_8(tmp_path, kind):
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).round().astype(np.uint16)
    one_image(tmp_path, Image.fromarray(levels), f"0.{kind}")
    (image, _) = read(small(tmp_path).train)
    expected = torch.from_numpy((levels / 257).round().astype(np.float32))
    assert torch.equal((image[0] * 255).round(), expected.expand(3, 32, 32))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_levels_without_a_range_are_refused(tmp_path, dtype):
    levels = np.linspace(0, 1, 32 * 32).reshape(32, 32).astype(dtype)
    one_image(tmp_path, Image.fromarray(levels), "0.tif")
    with pytest.raises(DataError, match=r"0.tif cannot be .* 8 or 16 bits expected, got 32 bits"):
        read(small(tmp_path).train)


def extra_memory(split, ordinary):
    """Bytes of memory that reading takes at most beyond an ``ordinary`` one, which brings the code
    that both run, in a process of its own."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def peak():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])

    def child():
        torch.set_num_threads(1)
        read(ordinary)
        before = peak()
        read(split)
        sender.send(peak() - before)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert receiver.poll(30), "the process has ended"
    process.join()
    return receiver.recv()


@pytest.mark.parametrize("size", [(1, 10_000), (50_000, 1), (3, 40_001)])
@pytest.mark.parametrize("augment", [[], ["resizedcrop"]])
def test_long_narrow_images_take_no_memory(tmp_path, size, augment):
    """Scaled so that the shorter side is 256, these have 2 to 10 gigabytes; the middle stays."""
    ramp = np.linspace(0, 255, max(size)).reshape(size[::-1]) if 1 in size else 77
    pixels = np.broadcast_to(ramp, size[::-1]).round().astype(np.uint8)
    one_image(tmp_path, Image.fromarray(pixels))
    split = small(tmp_path, image_size=224, augment=augment).train
    one_image(tmp_path / "ordinary", Image.new("L", (300, 300)))
    ordinary = small(tmp_path / "ordinary", image_size=224, augment=augment).train
    assert extra_memory(split, ordinary) < 50 * 2**20
    if not augment:
        image = read(split)[0]
        assert (image * 255 - pixels.mean()).abs().max() < 1


def test_images_of_too_many_pixels_are_refused(tmp_path):
    one_image(tmp_path, Image.new("1", (10_000, 9_000)))
    with pytest.raises(DataError, match=r"0.png cannot be decoded: .*90000000 pixels.* exceeds"):
        read(small(tmp_path).train)


def test_a_length_in_an_image_reserves_no_memory(tmp_path):
    path = one_image(tmp_path, Image.new("L", (32, 32)))
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT") - 4
    content[at : at + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        decode(path, "0.png")
    except DataError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**22


def test_other_formats_are_not_tried(tmp_path):
    path = one_image(tmp_path, Image.new("RGB", (32, 32)))
    Image.new("RGB", (32, 32)).save(path, "EPS")
    with pytest.raises(DataError, match=r"0.png cannot be decoded: it is none of"):
        read(small(tmp_path).train)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(5, "Input/output error"), RuntimeError("x")]
)
def test_all_that_a_sample_raises_is_named_or_skipped(tmp_path, monkeypatch, workers, error):
    write_images(tmp_path, classes=1, per_class=3)

    def fails(*given):
        raise error

    monkeypatch.setattr(sys.modules["snnfast.data.folder"], "centre_crop", fails)
    said = re.escape(str(error)) or type(error).__name__
    with pytest.raises(DataError, match=rf"000.png cannot be read: .*{said}"):
        read(small(tmp_path, workers=workers).train)
    split = small(tmp_path, workers=workers, on_error="skip").train
    with pytest.warns(UserWarning, match="000.png cannot be read"):
        _, targets = read(split)
    assert targets.tolist() == [IGNORED] * 3 and len(split.skipped) == 3


def test_a_worker_that_ends_is_named(tmp_path, monkeypatch):
    write_images(tmp_path, classes=1, per_class=3)
    monkeypatch.setattr(
        sys.modules["snnfast.data.folder"], "centre_crop", lambda *given: os._exit(1)
    )
    with pytest.raises(DataError, match=r"batch 0 .*000.png.* ended a worker.*workers=0"):
        read(small(tmp_path, workers=1).train)


def test_a_batch_may_be_empty(tmp_path):
    """That of a rank, where there are fewer images than ranks."""
    write_images(tmp_path, classes=1, per_class=1)
    ((images, targets),) = small(tmp_path).train.batches([torch.arange(0)])
    assert images.shape == (0, 3, 32, 32) and targets.shape == (0,)


@pytest.mark.parametrize("workers", [0, 1])
def test_pipes_are_not_waited_for(tmp_path, workers):
    write_images(tmp_path, classes=1, per_class=2)
    os.mkfifo(tmp_path / "train" / "n000" / "001a.png")
    with pytest.raises(DataError, match=r"001a.png cannot be decoded: it is not a regular file"):
        read(small(tmp_path, workers=workers).train)
    split = small(tmp_path, workers=workers, on_error="skip").train
    with pytest.warns(UserWarning, match="001a.png"):
        assert read(split)[1].tolist() == [0, 0, IGNORED]


def test_what_is_hidden_is_no_image(tmp_path):
    write_images(tmp_path, classes=2, per_class=2)
    for split in ("train", "val"):
        (tmp_path / split / "n000" / "._000.png").write_bytes(b"Mac OS X")
        for place in ("n000", "."):
            left = tmp_path / split / place / ".ipynb_checkpoints"
            left.mkdir()
            Image.new("RGB", (32, 32)).save(left / "000-checkpoint.png")
    data = small(tmp_path)
    assert data.num_classes == 2 and read(data.train)[1].tolist() == [0, 0, 1, 1]


def test_scaling_up_is_warned_of(tmp_path):
    one_image(tmp_path)
    with pytest.warns(
        UserWarning, match=r"imagenet: images of 32 .* to image_size 224, 49 times.*32"
    ):
        small(tmp_path, image_size=224)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(tmp_path, image_size=32)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"imagenet: .* must hold train/CLASS.*val/CLASS"):
        load_data("imagenet", root=tmp_path)
    write_images(tmp_path, splits=("train",))
    expected = (
        r"folder: .* train/CLASS/IMAGE and test/CLASS/IMAGE \(or val/.*\.png,.* folders train: put"
    )
    with pytest.raises(FileNotFoundError, match=expected):
        load_data("folder", root=tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no class folders in .*val"):
        load_data("imagenet", root=tmp_path)
    write_images(tmp_path, splits=("val",), classes=4)
    with pytest.raises(ValueError, match=r"got 3 for training and 4 for testing .*: n003"):
        load_data("imagenet", root=tmp_path)
    (tmp_path / "train" / "n003").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*n003"):
        load_data("imagenet", root=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "imagenet: image_size must be >= 1, got 0"),
        ({"workers": -1}, "imagenet: workers must be >= 0, got -1"),
        ({"on_error": "retry"}, "imagenet: on_error must be stop or skip, got 'retry'"),
        ({"train": 13}, r"imagenet: train must be 0 \(all\) to 12, got 13"),
        ({"augment": ["resizecrop"]}, r"\(did you mean 'resizedcrop'\?\)"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    write_images(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_data("imagenet", root=tmp_path, **options)


def test_subsets_of_folders_have_all_classes(tmp_path):
    write_images(tmp_path, classes=3, per_class=4)
    data = load_data("imagenet", root=tmp_path, train=6, test=3, workers=0, image_size=8)
    assert read(data.train)[1].tolist() == [0, 0, 1, 1, 2, 2]
    assert read(data.test)[1].tolist() == [0, 1, 2]


def hub_rows(classes, split, labels=("label",)):
    import datasets

    pixels, targets = cifar_images(classes, split)
    images = [Image.fromarray(p.reshape(3, 32, 32).transpose(1, 2, 0)) for p in pixels]
    features = {"img": datasets.Image()}
    columns = {"img": images}
    for column in labels:
        coarse = column == "coarse_label"
        features[column] = datasets.ClassLabel(num_classes=classes // (5 if coarse else 1))
        columns[column] = (targets // 5 if coarse else targets).tolist()
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize("parquet", [False, True], ids=["saved", "parquet"])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_from_a_copy_of_the_hubs_set(tmp_path, monkeypatch, parquet, classes):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    labels = ("label",) if classes == 10 else ("coarse_label", "fine_label")
    rows = {split: hub_rows(classes, split, labels) for split in ("train", "test")}
    if parquet:
        for split in rows:
            rows[split].to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    else:
        datasets.DatasetDict(rows).save_to_disk(tmp_path)
    data = load_data(f"cifar{classes}", root=tmp_path, source="hub")
    for split in ("train", "test"):
        pixels, targets = cifar_images(classes, split)
        images, known = read(getattr(data, split), size=50)
        assert torch.equal((images * 255).round().byte().flatten(1), torch.from_numpy(pixels))
        assert known.tolist() == targets.tolist()


def test_imagenet_from_a_copy_of_the_hubs_set(tmp_path):
    import datasets

    rows = {"train": hub_rows(10, "train"), "validation": hub_rows(10, "test")}
    datasets.DatasetDict(rows).save_to_disk(tmp_path)
    data = load_data("imagenet", root=tmp_path, source="hub", workers=2, image_size=32)
    assert data.num_classes == 10 and data.in_channels == 3
    images, targets = read(data.test)
    assert images.shape == (10, 3, 32, 32) and targets.tolist() == list(range(10))
    pixels, _ = cifar_images(10, "test")
    assert torch.equal((images * 255).round().byte().flatten(1), torch.from_numpy(pixels))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'datasets is not installed: pip install "snnfast.hub.'):
        load_data("cifar10", root=tmp_path, source="hub")


def test_hub_sets_that_do_not_fit(tmp_path):
    import datasets

    rows = hub_rows(10, "train")
    for number, (splits, message) in enumerate(
        (
            ({"train": rows}, "must have a split test, got train"),
            ({"train": rows.remove_columns("label"), "test": rows}, "one of class labels, got img"),
            ({split: hub_rows(100, split) for split in ("train", "test")}, r"10 .*/train has 100"),
            ({"train": rows, "test": rows.map(lambda row: {"label": -1})}, "without a label"),
        )
    ):
        root = tmp_path / str(number)
        datasets.DatasetDict(splits).save_to_disk(root)
        with pytest.raises(ValueError, match=message):
            load_data("cifar10", root=root, source="hub")


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'me/mine' cannot be had .*no route.*save_to_"):
        load_data("cifar10", root=tmp_path, source="hub:me/mine")


@pytest.mark.parametrize("bits, interpretation", [(12, 1), (16, 0)])
def test_grey_tiffs_that_would_come_out_wrong_are_refused(tmp_path, bits, interpretation):
    """A strip of two pixels, written by hand: PIL reads both as 16 bits with black as 0."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: interpretation, 273: 0, 277: 1, 278: 1, 279: 4}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    content = head + entries + bytes(4) + b"\xff\xff\x00\x80"
    with pytest.raises(DataError, match="black as 0 expected"):
        decode(content, "grey.tif")
