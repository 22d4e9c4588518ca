"""A step of training on a GPU waits for nothing: no number is read back, and what goes there goes
by copies that are not waited for. Shown on a CPU, by what is called."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from train_cases import WAITS, taken_for_a_gpu, trainer_of

import snnfast
from snnfast.data import base
from snnfast.data.augment import transform
from snnfast.data.transforms import Normalise
from snnfast.ops import packed, select

AUGMENT = ("crop4", "flip", "autoaugment", "cutout16", "events")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    taken_for_a_gpu(monkeypatch)
    monkeypatch.setattr(packed, "_look_is_free", lambda t: False)
    monkeypatch.setattr(packed, "_known", packed._Known())


@pytest.mark.parametrize(
    "options",
    (
        {"amp": "fp16", "mixup": 0.2, "accumulate": 2},
        {"amp": "bf16", "channels_last": True},
        {"sequences": True, "momentum": 0.0},
    ),
    ids=("fp16", "bf16", "sequences"),
)
def test_no_number_is_read_back(as_on_a_gpu, options):
    steps = trainer_of(torch.device("cpu"), **options).steps()
    with torch.profiler.profile() as profile:
        for _ in range(3):
            assert not next(steps).last
    events = profile.profiler.kineto_results.events()
    called = {event.name().removeprefix("aten::") for event in events}
    assert "convolution_backward" in called
    assert not called & WAITS


class _CopiesOf(TorchDispatchMode):
    """Lists the copies to another device, as (memory, whether it is waited for)."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out, kwargs = op(*args, **kwargs or {}), kwargs or {}
        tensors = [t for t in (out, *args) if isinstance(t, torch.Tensor)]
        if {t.device.type for t in tensors if t.dim()} == {"cpu", "meta"}:
            source = next(t for t in tensors if t.device.type == "cpu")
            self.found.append((source.data_ptr(), not kwargs.get("non_blocking", False)))
        return out


class _NothingFromLists(TorchFunctionMode):
    """Refuses to make tensors of another device out of Python's numbers: a copy that waits, and
    that a graph of CUDA cannot hold."""

    MAKE = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)

    def __torch_function__(self, call, types, args=(), kwargs=None):
        out = call(*args, **kwargs or {})
        assert call not in self.MAKE or out.device.type == "cpu"
        return out


@pytest.fixture
def copies(monkeypatch):
    """What is copied to the meta device, which knows no values: to read one is an error. Listed as
    in _CopiesOf, with whether its memory is pinned in place of the address."""
    monkeypatch.setattr(
        select, "automatic", lambda *call: ("cpu", "the meta kernels know no other")
    )
    pinned, allocate = [], base._pinned

    def listed(size, device):
        pinned.append(allocate(size, device))
        return pinned[-1]

    monkeypatch.setattr(base, "_pinned", listed)
    with _NothingFromLists(), _CopiesOf() as mode:
        yield lambda: [(at in {t.data_ptr() for t in pinned}, late) for at, late in mode.found]


@pytest.mark.parametrize("sequences", (False, True))
def test_what_a_step_copies_is_not_waited_for(copies, sequences):
    names = [name for name in AUGMENT if name != "autoaugment" or not sequences]
    normalise = () if sequences else (Normalise((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)),)
    augment = [*(transform("test", name) for name in names), *normalise]
    steps = trainer_of(torch.device("meta"), augment, sequences, mixup=0.2).steps()
    before = len(copies())
    for _ in range(3):
        assert not next(steps).last
    assert copies()[before:] == 3 * 2 * [(True, False)]  # the samples' numbers, and the draws


def test_ranks_share_statistics_without_a_copy(copies, monkeypatch):
    for name in ("all_gather", "all_reduce"):
        monkeypatch.setattr(dist, name, lambda *tensors, group: None)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    block = torch.nn.Sequential(snnfast.nn.batch_norm.BatchNorm2d(4), snnfast.nn.BatchNormLIF(4))
    snnfast.models.set_process_group(block, dist.ProcessGroup(0, 2))
    norm, neurons = block.to("meta")
    before = len(copies())
    x = torch.empty(2, 3, 4, 5, 5, device="meta", requires_grad=True)
    neurons(norm(x.flatten(0, 1)).unflatten(0, (2, 3))).sum().backward()
    assert x.grad.shape == x.shape and not copies()[before:]


def test_what_goes_in_one_copy_arrives(monkeypatch):
    tensors = [torch.rand(3, 2), torch.rand(5) < 0.5, torch.arange(7)[::2], torch.empty(0, 2),
               torch.rand(1, dtype=torch.float64), torch.tensor(True)]  # fmt: skip
    copied = []
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: copied.append(t) or t.clone())
    moved = base.to_device(tensors, SimpleNamespace(type="another"))
    assert len(copied) == 1 and len(moved) == len(tensors)
    for got, t in zip(moved, tensors):
        assert got.dtype == t.dtype and torch.equal(got, t)
