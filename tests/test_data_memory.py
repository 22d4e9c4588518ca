"""Data sets in memory: the published files in, batches out."""

import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from data_files import cifar_images, write_cifar, write_data

from snnfast.data import DataError, data_options, list_data, load_data


def order(split, size):
    return torch.arange(len(split)).split(size)


def everything(split, size=7):
    images, targets = zip(*split.batches(order(split, size)))
    return torch.cat(images), torch.cat(targets)


def test_digits_are_real_split_and_fixed():
    data = load_data("digits")
    images, targets = everything(data.train, 1000)
    assert images.shape == (4000, 1, 28, 28) and images.dtype == torch.float32
    assert (data.num_classes, data.in_channels, data.image_size) == (10, 1, 28)
    assert images.min() == 0 and images.max() == 1
    assert torch.bincount(targets).tolist() == [400] * 10
    tested, known = everything(data.test, 1000)
    assert torch.bincount(known).tolist() == [100] * 10
    flat = {image.numpy().tobytes() for image in images}
    assert not flat & {image.numpy().tobytes() for image in tested}
    # Fixed: the pixel sums of the first images of three classes.
    sums = [int((images[targets == c][0] * 255).sum().round()) for c in (0, 1, 9)]
    assert sums == [33358, 11394, 30375]

    small = load_data("digits", train=100, test=50)
    first, labels = everything(small.train)
    assert len(first) == 100 and len(small.test) == 50
    for digit in range(10):
        assert torch.equal(first[labels == digit], images[targets == digit][:10])
    small.train.images.zero_()
    assert load_data("digits", train=100, test=50).train.images.any()


@pytest.mark.parametrize("sizes", [{"train": 15}, {"train": 4010}, {"test": -10}, {"test": 1010}])
def test_digits_refuses_other_sizes(sizes):
    with pytest.raises(ValueError, match=r"digits: .* must be a multiple of 10 from 10 to"):
        load_data("digits", **sizes)


@pytest.mark.parametrize("binary", [False, True], ids=["pickle", "binary"])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_from_published_files(tmp_path, classes, binary):
    folder = write_cifar(tmp_path, classes, per_class=2, binary=binary)
    for root in (tmp_path, folder):
        data = load_data(f"cifar{classes}", root=root)
        assert (data.num_classes, data.in_channels, data.image_size) == (classes, 3, 32)
        for split in ("train", "test"):
            pixels, labels = cifar_images(classes, split, per_class=2)
            images, targets = everything(getattr(data, split))
            # Three planes of 32 rows each, one after the other.
            assert torch.equal((images * 255).round().byte().flatten(1), torch.from_numpy(pixels))
            assert targets.tolist() == labels.tolist()
            assert images.dtype == torch.float32 and getattr(data, split).skipped == []
    assert data.train.images.dtype == torch.uint8


def test_batches_follow_the_order_given(tmp_path):
    write_cifar(tmp_path)
    split = load_data("cifar10", root=tmp_path).train
    wanted = torch.tensor([49, 3, 3, 0])
    ((images, targets),) = split.batches([wanted])
    everyone, labels = everything(split)
    assert torch.equal(images, everyone[wanted]) and torch.equal(targets, labels[wanted])


def test_subsets_are_balanced_and_nested(tmp_path):
    write_cifar(tmp_path, per_class=5)
    sizes = {}
    for count in (10, 13, 30):
        split = load_data("cifar10", root=tmp_path, train=count, test=5).train
        counts = torch.bincount(split.targets, minlength=10)
        assert len(split) == count and counts.max() - counts.min() <= 1
        sizes[count] = {image.numpy().tobytes() for image in split.images}
    assert sizes[10] < sizes[13] < sizes[30]
    for name in ("train", "test"):
        with pytest.raises(ValueError, match=rf"cifar10: {name} must be 0 .all. to 50, got 51"):
            load_data("cifar10", root=tmp_path, **{name: 51})


def test_missing_files_say_what_goes_where(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_data("cifar10", root=tmp_path / "nothing")
    for part in ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-bin/data_batch_1.bin"):
        assert part in str(error.value)
    assert str(tmp_path / "nothing") in str(error.value) and "root" in str(error.value)
    (write_cifar(tmp_path) / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 cannot be read"):
        load_data("cifar10", root=tmp_path)


def proto2(*parts):
    """A pickle of protocol 2 out of its operations."""
    return b"\x80\x02" + b"".join(parts) + b"."


def published_pickle(labels, pixels):
    """As Python 2 wrote the published files: strings of bytes, every value kept by its number."""

    def text(content):
        return b"T" + struct.pack("<I", len(content)) + content

    state = b"(K\x03U\x01|NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    dtype = b"cnumpy\ndtype\nq\x07(U\x02u1q\x08K\x00K\x01tRq\x09" + state
    side = struct.pack("<I", pixels.shape[0])
    return proto2(
        b"}q\x00(U\x0bbatch_labelq\x01U\x15training batch 1 of 5q\x02U\x06labelsq\x03]q\x04(",
        b"".join(b"K" + bytes([label]) for label in labels),
        b"eU\x04datacnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87R",
        b"(K\x01J" + side + b"M\x00\x0c\x86" + dtype + b"\x89" + text(pixels.tobytes()) + b"tb",
        b"U\tfilenamesr\x00\x01\x00\x00](U\x05a.pngU\x05b.pngeu",
    )


@pytest.mark.parametrize("make", [published_pickle, *range(2, 5)])
def test_cifar_pickles_of_python_2_and_of_every_protocol(tmp_path, make):
    path = write_cifar(tmp_path) / "data_batch_1"
    pixels, labels = cifar_images(10, "test", 1)
    if callable(make):
        content = make(labels, pixels)
        assert pickle.loads(content, encoding="latin1")["labels"] == labels.tolist()
    else:
        content = pickle.dumps({"labels": labels, "data": pixels, "names": ["a"]}, protocol=make)
    path.write_bytes(content)
    train = load_data("cifar10", root=tmp_path).train
    assert torch.equal(train.images[:10].flatten(1), torch.from_numpy(pixels))
    assert train.targets[:10].tolist() == labels.tolist()


def test_the_binary_version_comes_first(tmp_path):
    (write_cifar(tmp_path) / "data_batch_1").write_bytes(b"damaged")
    write_cifar(tmp_path, binary=True)
    assert len(load_data("cifar10", root=tmp_path).train) == 50


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


def nested(depth):
    """Tuples whose hash, text and comparison take 2**depth steps."""
    return b"K\x01\x85" + b"q\x00h\x00\x86" * depth


ARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}), "has no 'labels'"),
        (pickle.dumps(np.zeros(3, np.uint8), protocol=2), "dict expected, got Array"),
        (pickle.dumps(Evil(), protocol=2), "mkdir is not an array"),
        (
            pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}, protocol=2),
            "arrays must be of u1 or i8, got 'f8'",
        ),
        (
            pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, protocol=2),
            r"must hold uint8 \[2, 3072\], got uint8 \[2, 3071\]",
        ),
        # Addresses out of the file: an array of objects over bytes, and the same by its dtype.
        (proto2(ARRAY + b"K\x01\x85U\x01OU\x08AAAAAAAA\x87R"), "numpy.ndarray is not an array"),
        (proto2(ARRAY + b"K\x01\x85U\x01OU\x08AAAAAAAA\x87\x81"), "NEWOBJ is none of what"),
        (proto2(DTYPE + b"U\x01O\x85R"), "arrays must be of u1 or i8, got 'O'"),
        (
            proto2(DTYPE + b"U\x02u1\x85R(K\x03U\x01|N(U\x01fttb"),
            "dict expected, got _Dtype",
        ),
        (proto2(ARRAY + b"U\x07__doc__U\x01x\x86b"), "_Global has no such state"),
        # Memory: a number to keep a value by, an array, a length, operations without an end.
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "dict expected, got NoneType"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "expected 1099511627776 bytes"),
        (proto2(DTYPE + b"U\x02u1\x85R"), "dict expected"),
        (proto2(b"}" * 1_000_001), "more than 1000000 operations"),
        # Time: keys whose hash, and labels and names whose text, take for ever.
        (proto2(b"}" + nested(60) + b"Ns"), "str expected, got tuple"),
        (proto2(b"}X\x04\0\0\0data]sX\x06\0\0\0labels]" + nested(60) + b"as"), "int expected"),
        (proto2(DTYPE + nested(60) + b"\x85R"), "str expected, got tuple"),
    ],
)
def test_damaged_and_hostile_pickles_are_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = write_cifar(tmp_path) / "data_batch_2"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_data("cifar10", root=tmp_path)
    assert "data_batch_2" in str(error.value)
    assert not (tmp_path / "was-here").exists()


def test_pickles_take_no_more_memory_than_their_size(tmp_path):
    """One text of a megabyte, made into an array 200 times; a number for 2 GB of empty places."""
    text = struct.pack("<I", 2**20) + b"A" * 2**20
    dtype = DTYPE + b"U\x02u1\x85R"
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + ARRAY + b"K\x00\x85U\x01b\x87R"
    state = b"(K\x01J\x00\x00\x10\x00\x85" + dtype + b"\x89h\x00t"
    content = proto2(b"T" + text + b"q\x00", *[array + state + b"b"] * 200, b"r\xff\xff\xff\x7f")
    path = write_cifar(tmp_path) / "data_batch_2"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="data_batch_2 cannot be read"):
            load_data("cifar10", root=tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_files_that_never_end_or_are_too_long(tmp_path):
    path = write_cifar(tmp_path) / "data_batch_2"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="data_batch_2 cannot be read: it is not a regular file"):
        load_data("cifar10", root=tmp_path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(DataError, match=r"_2 cannot .* at most 268435456 bytes, got 2684"):
        load_data("cifar10", root=tmp_path)


def test_damaged_binary_file_is_named(tmp_path):
    path = write_cifar(tmp_path, binary=True) / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"test_batch.bin must hold records of 3073 bytes, got"):
        load_data("cifar10", root=tmp_path)


def test_wrong_number_of_classes_names_both(tmp_path):
    folder = write_cifar(tmp_path, classes=10)
    pixels, _ = cifar_images(10, "train", 1)
    content = {"labels": list(range(5, 15)), "data": pixels}
    (folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"10 classes expected, the labels .* are 0 to 14"):
        load_data("cifar10", root=tmp_path)


# Of sets that have none of their own accord; one of spikes (shd) takes none at all.
AUGMENT = {"event_frames": ["events"], "n_mnist": ["events"]}


@pytest.mark.parametrize("name", [n for n in list_data() if "augment" in data_options(n)])
def test_every_set_gives_batches_that_its_augmentation_takes(tmp_path, name):
    options = {"augment": AUGMENT[name]} if name in AUGMENT else {}
    options |= {"root": write_data(name, tmp_path)} if name != "digits" else {}
    data = load_data(name, **options)
    batch = next(data.train.batches([torch.arange(5)], seed=1))
    shape = (5, data.in_channels, data.image_size, data.image_size)
    if data.timesteps:
        shape = (data.timesteps, *shape)
    assert batch[0].shape == shape and batch[0].dtype == torch.float32
    assert batch[1].dtype == torch.int64 and batch[1].max() < data.num_classes
    out = data.augment(batch[0], seed=2)
    assert out.shape == shape and out.isfinite().all() and not torch.equal(out, batch[0])
    ready = data.prepare(next(data.test.batches([torch.arange(5)]))[0], seed=0)
    assert ready.shape == shape and ready.isfinite().all()


def test_options_are_refused_by_name(tmp_path):
    assert {"cifar10", "cifar100", "digits"} <= set(list_data())
    with pytest.raises(ValueError, match=r"name must be one of cifar10, .*did you mean 'cifar10'"):
        load_data("cifar")
    with pytest.raises(ValueError, match=r"digits has no option 'root': it has augment, norm"):
        load_data("digits", root=tmp_path)
    with pytest.raises(ValueError, match=r"no option 'normalize' \(did you mean 'normalise'\?\)"):
        load_data("cifar10", normalize=True)
    assert data_options("digits") == ["augment", "normalise", "test", "train"]
    with pytest.raises(ValueError, match="must be files, hub or hub:OWNER/NAME, got 'web'"):
        load_data("cifar10", root=tmp_path, source="web")
    for names in (["flop"], [4], "flip"):
        with pytest.raises(ValueError, match="cifar10: augment must"):
            load_data("cifar10", root=tmp_path, augment=names)
    with pytest.raises(ValueError, match="autoaugment needs images of 3 channels, these have 1"):
        load_data("digits", augment=["autoaugment"])
