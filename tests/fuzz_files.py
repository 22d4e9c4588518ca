"""Damaged and hostile data files: mutated copies of small valid ones, read by the public functions.

    python tests/fuzz_files.py [SECONDS [SEED]]

A process with bounded memory reads one file after the other and says what came of it: a result that
makes sense or an error of the library's form. Anything else is a failure, and so is its end, a long
silence, or much memory. Each file comes from the seed and its number alone.
"""

import os
import random
import re
import resource
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import event_files
import numpy as np
import torch
from data_files import CIFAR, cifar_files, write_cifar, write_images
from mutations import mutated
from PIL import Image

from snnfast.data import IGNORED, DataError, load_data

SILENCE, START = 15, 120  # seconds without a word after which the process counts as hanging
MOST = 100  # failures, after which no more are looked for
CPU = 8  # seconds of computing for one file; the largest image is decoded twice
# Bytes above what the process begins with: two copies of the largest image that is decoded, which
# has 89 million pixels of 4 bytes.
MEMORY = 800 * 2**20
READY = b"ready\n"
WORKER = "import sys, fuzz_files; fuzz_files.work(int(sys.argv[1]), int(sys.argv[2]))"
ERRORS = (DataError, ValueError, FileNotFoundError)


@dataclass
class Target:
    """One file of a data set that is there on disk."""

    name: str  # of the data set
    root: Path
    path: Path
    sample: bool = True  # of one sample, which may be skipped, not of all
    options: dict = field(default_factory=dict)
    same: tuple | None = None  # what must come out, whatever the file has
    good: bytes = b""

    def __post_init__(self):
        self.good = self.path.read_bytes()


def run(seconds: float, seed: int) -> list[str]:
    """Read mutated files for that long, starts not counted, and describe those that failed."""
    failures: list[str] = []
    counts: Counter[str] = Counter()
    number = 0
    while seconds > 0 and len(failures) < MOST:
        worker, file = _start(seed, number), ""
        end = time.monotonic() + seconds
        try:
            for line in _lines(worker.stdout, end):
                if line.startswith("file "):
                    file, number = line, number + 1
                    continue
                outcome, _, problem = line.partition(" ")
                counts[outcome] += 1
                if outcome == "failed":
                    failures.append(f"{file}: {problem}")
                    if len(failures) >= MOST:
                        break
                file = ""
        except TimeoutError as silence:
            failures.append(f"{file}: {silence}")
        except EOFError:
            code = worker.wait()
            if code or file:
                failures.append(f"{file}: the process ended with {code}")
        finally:
            _end(worker)
        seconds = end - time.monotonic()
    print(
        f"{number} files: {counts['read']} read, {counts['refused']} refused, "
        f"{len(failures)} failures (seed {seed})"
    )
    return failures


def _start(seed: int, first: int) -> subprocess.Popen:
    """The process, once it has said that it is ready."""
    paths = [str(Path(__file__).parent), *sys.path]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(seed), str(first)],
        bufsize=0,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libraries report damage there
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    if not select.select([worker.stdout], [], [], START)[0] or worker.stdout.readline() != READY:
        _end(worker)
        raise RuntimeError("fuzz_files: the process that reads must start, see WORKER")
    return worker


def _end(worker: subprocess.Popen) -> None:
    worker.kill()
    worker.wait()
    worker.stdout.close()


def _lines(pipe, end: float) -> Iterator[str]:
    """Lines until the time ``end``; EOFError at the end of the pipe, TimeoutError for a silence."""
    rest = b""
    while (left := end - time.monotonic()) > 0:
        if select.select([pipe], [], [], min(left, SILENCE))[0]:
            part = os.read(pipe.fileno(), 65536)
            if not part:
                raise EOFError
            *lines, rest = (rest + part).split(b"\n")
            yield from (line.decode() for line in lines)
        elif left > SILENCE:
            raise TimeoutError(f"nothing for {SILENCE} seconds")


def work(seed: int, first: int) -> None:
    """What the process does: files from number ``first`` on, a line before and after each."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        targets = _targets(Path(folder))
        for target in targets:  # all that is imported late
            assert _read(target) == "read", target
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2 * MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        start, others = _peak(), [target.good for target in targets]
        print(READY.decode(), end="", flush=True)
        for number in range(first, sys.maxsize):
            draw = random.Random(f"{seed} {number}")
            target = draw.choice(targets)
            how, content = mutated(draw, target.good, target.path.suffix, others)
            place = target.path.relative_to(folder)
            print(f"file {number} of seed {seed}, {place}, {how}", flush=True)
            target.path.write_bytes(content)
            began = time.process_time()
            said = _read(target, draw.choice(("stop", "skip")))
            took, peak = time.process_time() - began, _peak() - start
            if said in ("read", "refused") and took > CPU:
                said = f"failed {took:.1f} seconds"
            if said in ("read", "refused") and peak > MEMORY:
                said = f"failed {peak >> 20} MB"
            print(said, flush=True)
            if peak > MEMORY:  # the peak stays: another process goes on
                return


def _peak() -> int:
    # Not getrusage's, which a process takes over from the one that has started it.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(peak[1])


def _read(target: Target, on_error: str = "stop") -> str:
    """Load the set and read all of it; "read", "refused", or "failed" and why."""
    options = dict(target.options)
    if "workers" in options:
        options["on_error"] = on_error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)  # NumPy's, of numbers that are lost
            data = load_data(target.name, root=target.root, **options)
            for split in (data.train, data.test):
                problem = _problem(data, split)
                if problem:
                    return f"failed {problem}"
            if target.same and not torch.equal(data.train.images, target.same[0]):
                return "failed other frames are taken"
            if target.same and not torch.equal(data.train.targets, target.same[1]):
                return "failed other targets are taken"
    except BaseException as error:
        text = re.sub(r"\s+", " ", str(error))[:300]
        if not isinstance(error, ERRORS):
            return f"failed {type(error).__name__}: {text}"
        if " object at 0x" in text:
            return f"failed a place in memory is named: {text}"
        if "allocate" in text or "MemoryError" in text:
            return f"failed for want of memory: {text}"
        if target.name not in text and str(target.root) not in text:
            return f"failed nothing is named: {type(error).__name__}: {text}"
        if target.sample and on_error == "skip" and "workers" in options:
            return f"failed not skipped: {text}"
        return "refused"
    return "read"


def _problem(data, split) -> str | None:
    """What is wrong with the batches of a split, if anything."""
    most = 1 if data.timesteps is None else 65504
    for images, targets in split.batches(torch.arange(len(split)).split(16)):
        if not 0 <= images.min() <= images.max() <= most:
            return f"images are {images.min()} to {images.max()}"
        known = targets[targets != IGNORED]
        if len(known) and not 0 <= known.min() <= known.max() < data.num_classes:
            return f"targets are {known.min()} to {known.max()}"
    return None


def _targets(folder: Path) -> list[Target]:
    """Every kind of file that there is a reader for, in sets of their own."""
    return [*_cifar(folder), *_images(folder), *_events(folder)]


def _cifar(folder: Path) -> Iterator[Target]:
    for classes in (10, 100):
        for binary in (False, True):
            root = folder / f"cifar{classes}-{binary}"
            write_cifar(root, classes, 1, binary)
            for split in ("train", "test"):
                name = cifar_files(classes)[split][-1] + ".bin" * binary
                path = root / CIFAR[classes][binary] / name
                yield Target(f"cifar{classes}", root, path, sample=False)


def _images(folder: Path) -> Iterator[Target]:
    noise = np.random.default_rng(0).integers(0, 65536, (12, 10), dtype=np.uint16)
    colours = Image.effect_noise((40, 30), 90).convert("RGB")
    for kind, image, options in (
        ("png", colours, {}),
        ("png", colours.convert("P"), {"transparency": b"\0\1\2"}),
        ("png", Image.fromarray(noise), {}),
        ("jpeg", colours, {}),
        ("jpeg", colours.convert("CMYK"), {"progressive": True}),
        ("bmp", colours, {}),
        ("bmp", colours.convert("P"), {"compression": 1}),
        ("gif", colours.convert("P"), {"save_all": True, "append_images": [colours.convert("P")]}),
        ("ppm", colours, {}),
        ("pgm", Image.fromarray(noise), {}),
        ("tif", colours, {"compression": "tiff_lzw"}),
        ("tif", Image.fromarray(noise), {}),
        ("tif", Image.fromarray(noise / np.float32(65536)), {}),
        ("webp", colours, {}),
        ("webp", colours, {"lossless": True}),
    ):
        root = folder / f"folder-{len(list(folder.iterdir()))}"
        write_images(root, ("train", "test"), classes=1, per_class=1, size=(16, 12))
        path = root / "train" / "n000" / f"1.{kind}"
        image.save(path, **options)
        target = Target("folder", root, path, True, {"workers": 0, "image_size": 16})
        if image.mode == "F":  # refused as it is
            path.write_bytes((root / "train" / "n000" / "000.png").read_bytes())
        yield target


def _events(folder: Path) -> Iterator[Target]:
    options = {"workers": 0, "timesteps": 2, "image_size": 8}
    for name, kind, pack in (
        ("aedat2", "aedat", None),
        ("aedat4", "aedat4", None),
        ("aedat4-zstd", "aedat4", event_files.zstd),
        ("aedat4-lz4", "aedat4", event_files.lz4),
        ("frames", "aedat", None),
    ):
        root = event_files.write_cifar10_dvs(folder / name, 2, kind)
        path = root / "cat" / f"cifar10_cat_0.{kind}"
        same = None
        if pack:
            event_files.write_aedat4(path, *event_files.random_events(0, 40), pack=pack)
        if name == "frames":
            data = load_data("cifar10_dvs", root=root, **options)
            path = root / "cifar10_dvs-train-T2-8.safetensors"
            same = data.train.images, data.train.targets
        yield Target("cifar10_dvs", root, path, True, options, same)
    root = event_files.write_dvs_gesture(folder / "gesture")
    for name, sample in (
        ("user01_led.aedat", True),
        ("user01_led_labels.csv", False),
        ("trials_to_train.txt", False),
    ):
        # Each in its own folder, so that the others are good.
        own = event_files.write_dvs_gesture(folder / f"gesture-{name}")
        yield Target("dvs_gesture", own, own / name, sample, options)
    root = event_files.write_dvs_gesture(folder / "gesture-cut", cut=True)
    path = root / "ibmGestureTrain" / "user01_led" / "3.npy"
    yield Target("dvs_gesture", root, path, True, options)


if __name__ == "__main__":
    given = [float(value) for value in sys.argv[1:]]
    found = run(given[0] if given else 60, int(given[1]) if len(given) > 1 else 0)
    print(*found, sep="\n")
    sys.exit(bool(found))
