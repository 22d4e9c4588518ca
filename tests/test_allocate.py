"""The memory of results: kept for the next, never lent twice, and tensors like all others."""

import copy
import io
import multiprocessing
import subprocess
import sys
import threading

import pytest
import torch

import snnfast

LARGE = (4, 8, 64, 12, 14)  # [T, B, C, H, W], 1.4 MB

FAULTS = """
import resource
import torch
import snnfast

def faults():
    x, d = torch.randn(2, 4, 32, 64, 32, 32)  # 34 MB each, which malloc always gives back
    x.requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    snnfast.lif(x, backend="cpu").backward(d)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults(), faults())
snnfast.keep_results(0)
print(faults(), faults())
"""


@pytest.fixture(autouse=True)
def nothing_kept():
    limit = snnfast.keep_results(0)
    yield snnfast.keep_results(limit)
    snnfast.keep_results(0)
    snnfast.keep_results(limit)


def spikes(x=None, **options):
    x = torch.randn(LARGE) if x is None else x
    return snnfast.lif(x, tau=2.0, backend="cpu", **options)


def test_large_results_are_paged_in_once():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, not_kept = ([int(n) for n in line.split()] for line in run.stdout.splitlines())
    assert max(kept) < 100 and min(not_kept) > 10_000


def test_a_block_is_lent_again_only_when_nothing_lies_in_it():
    first = spikes()
    address, view = first.data_ptr(), first[2, 1:]
    right = view.clone()
    del first
    for _ in range(4):
        assert spikes(torch.full(LARGE, 3.0)).data_ptr() != address
    assert torch.equal(view, right)
    del view
    assert address in {t.data_ptr() for t in [spikes() for _ in range(4)]}


def test_what_is_saved_for_backward_stays():
    x = torch.randn(LARGE, requires_grad=True)
    y = spikes(spikes(x) * 1.5)
    for _ in range(4):
        spikes(torch.full(LARGE, 3.0))
    y.sum().backward()
    found, x.grad = x.grad, None
    snnfast.lif(snnfast.lif(x, backend="reference") * 1.5, backend="reference").sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_the_limit_holds_and_the_oldest_go_first():
    limit = torch.empty(LARGE).nbytes * 2 + 4096
    snnfast.keep_results(limit)
    assert snnfast.keep_results(limit) == limit
    three = [spikes() for _ in range(3)]
    addresses = [t.data_ptr() for t in three]
    while three:
        del three[0]
    again = [spikes() for _ in range(2)]
    assert {t.data_ptr() for t in again} == set(addresses[1:])


def test_a_much_larger_block_is_not_given_away():
    address = spikes(torch.randn(4, 16, *LARGE[2:])).data_ptr()
    small = spikes()
    assert spikes(torch.randn(4, 15, *LARGE[2:])).data_ptr() == address != small.data_ptr()


def test_whoever_profiles_memory_sees_it_all():
    x = torch.randn(LARGE)
    with torch.profiler.profile(profile_memory=True) as profile:
        s = spikes(x)
    events = profile.profiler.kineto_results.events()
    assert sum(e.nbytes() for e in events if e.name() == "[memory]") == s.nbytes


def test_what_is_larger_than_the_limit_is_nothing_special():
    snnfast.keep_results(1 << 20)
    assert not is_kept(spikes())


def is_kept(t) -> bool:
    return not t.untyped_storage().resizable()


def test_the_size_of_a_result_decides():
    """Not that of x: a state of a long sequence is small, spikes of a static x may be large."""
    s, v = spikes(torch.zeros(4096, 64), return_state=True)
    assert is_kept(s) and not is_kept(v)
    assert is_kept(spikes(torch.zeros(2**15), timesteps=8))
    assert is_kept(spikes(torch.zeros(2**19, dtype=torch.bfloat16)[None]))
    assert not is_kept(spikes(torch.zeros(2**19 - 1, dtype=torch.bfloat16)[None]))


@pytest.mark.parametrize("steps", [2**33, 2**41, 2**43, 2**62])
def test_sizes_beyond_all_memory_are_pytorch_s_to_refuse(steps):
    with pytest.raises(RuntimeError):
        spikes(torch.zeros(2**18), timesteps=steps)


OUT_OF_MEMORY = """
import resource
import torch
import snnfast

torch.set_num_threads(1)
x, large = torch.zeros(4, 2**21), torch.zeros(4, 2**23)
snnfast.lif(x), snnfast.lif(large)
snnfast.keep_results(0), snnfast.keep_results(512 << 20)
held = [snnfast.lif(x) for _ in range(7)]
del held  # leaves 235 MB
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
print(snnfast.lif(large).shape)
try:
    held = [snnfast.lif(large) for _ in range(9)]
except RuntimeError as error:
    print("can't allocate memory" in str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kept_memory_is_given_up_before_there_is_none():
    command = [sys.executable, "-c", OUT_OF_MEMORY]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split("\n") == ["torch.Size([4, 8388608])", "True", ""]


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (-1, ValueError, "keep_results: limit must be >= 0, got -1"),
        (1e9, TypeError, "keep_results: limit must be an int, got float"),
        (None, TypeError, "keep_results: limit must be an int, got None"),
        (True, TypeError, "keep_results: limit must be an int, got bool"),
    ],
)
def test_limits_that_are_none_are_refused(limit, error, message):
    with pytest.raises(error, match=message):
        snnfast.keep_results(limit)


def test_a_limit_of_everything():
    snnfast.keep_results(2**70)
    assert is_kept(spikes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", ["contiguous", "channels last", "batch first"])
def test_dtype_and_layout_are_those_of_x(dtype, order):
    x = torch.randn(4, 8, 64, 9, 16).to(dtype)
    if order == "channels last":
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 8))
    elif order == "batch first":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    small = x[:, :1] if order != "batch first" else x[:, :2]
    s, few = spikes(x), spikes(small)
    assert s.dtype == few.dtype == dtype
    assert s.stride() == x.stride() and torch.equal(s[:, : few.shape[1]], few)


@pytest.mark.parametrize("call", ["static", "state", "neuron", "last"])
def test_axes_of_one_element_have_the_strides_they_always_had(call):
    """Which decide how a convolution behind them lies in memory."""
    x = torch.randn(512, 1, 28, 28)
    x = x if call == "static" else x[None].repeat(2, 1, 1, 1, 1)
    if call == "last":
        x = x.as_strided(x.shape, (x.stride(0), 784, 1, 28, 1))
    run = {
        "static": lambda: spikes(x, timesteps=4),
        "state": lambda: spikes(x, return_state="all")[1],
        "neuron": lambda: snnfast.neurons.leaky(x, backend="cpu"),
        "last": lambda: spikes(x),
    }[call]
    found = run()
    snnfast.keep_results(0)
    assert is_kept(found) and found.stride() == run().stride()


def test_they_are_tensors_like_others():
    s, x = spikes(), torch.randn(LARGE, requires_grad=True)
    assert type(s) is torch.Tensor and not s._is_view() and s.storage_offset() == 0
    assert s.untyped_storage().nbytes() == s.nbytes
    file = io.BytesIO()
    torch.save(s, file)
    file.seek(0)
    for other in (torch.load(file), copy.deepcopy(s), torch.from_numpy(s.numpy().copy())):
        assert torch.equal(other, s)
    y = spikes(x)
    y += 1.0  # in place, behind an op that is differentiated
    y.sum().backward()
    assert x.grad.abs().sum() > 0
    s.share_memory_()
    assert s.is_shared()
    with torch.inference_mode():
        assert spikes().is_inference()


def test_under_compile_and_with_fake_tensors():
    x = torch.randn(LARGE)
    assert torch.equal(torch.compile(spikes, fullgraph=True)(x), spikes(x))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = spikes(mode.from_tensor(x))
        assert type(fake) is not torch.Tensor and fake.shape == x.shape


def _in_child(queue):
    torch.set_num_threads(1)
    queue.put(float(spikes(torch.ones(LARGE)).sum()))


def test_a_forked_child_has_memory_of_its_own():
    held = spikes(torch.full(LARGE, 3.0))
    spikes()  # leaves a block to both
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [spikes() for _ in iter(stop.is_set, True)])
    busy.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(5):
            queue = context.Queue()
            child = context.Process(target=_in_child, args=(queue,))
            child.start()
            assert queue.get(timeout=60) == spikes(torch.ones(LARGE)).sum()
            child.join()
    finally:
        stop.set()
        busy.join()
    assert held.sum() == held.numel()


def test_many_threads():
    wrong = []

    def work(number):
        for k in range(20):
            x = torch.full(LARGE, 0.5 + number + k)
            if not torch.equal(spikes(x)[0], (x[0] >= 2).float()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
