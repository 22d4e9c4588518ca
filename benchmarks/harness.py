"""What the benchmarks share: timing in interleaved rounds, bytes kept and at the peak, op counts.

Timing. All contenders run in the same rounds, one after the other and in a new order each round, so
that noise and clock changes hit all alike. A sample is the mean of as many calls as fill ``SLOT``
seconds; reported are the median and the 20th and 80th percentile of the samples. On CUDA a sample
is taken between two events behind a sleeping kernel, which lets the host queue all calls of the
sample first: what is timed is the device, and the host's own time per call is reported beside it.
(A loop that launches more kernels than the queue holds cannot be hidden so; it shows its host time,
as it does to its users.) All calls of all contenders are numbered in turn, so that of buffers that
rotate by that number none is used again before all others were.

Bytes kept. Net allocations over ``s = layer(x)`` where x is made inside and dropped afterwards,
minus s itself: exactly what the layer holds for its backward, its input included if it needs it.
On CUDA the bytes asked for, not the blocks that the allocator rounds them up to.
Peak: the most that was allocated at once over such a forward and its backward, inputs and gradients
included.
"""

import contextlib
import gc
import itertools
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code
from torch.profiler import ProfilerActivity, profile

SLOT = 0.005
MAX_CALLS = 50

# Ops that move no data of the layer: views and allocations.
_FREE_OPS = re.compile(
    r"aten::(empty|empty_like|empty_strided|new_empty|new_empty_strided|resize_|set_|as_strided"
    r"|select|slice|narrow|view|view_as|_unsafe_view|reshape|expand|expand_as|unbind|detach|detach_"
    r"|alias|unsqueeze|squeeze|permute|transpose|t|item|_local_scalar_dense|is_nonzero"
    r"|result_type|lift_fresh|requires_grad_|_has_compatible_shallow_copy_type)$"
)
_OP = re.compile(r"[a-z_]\w*::[a-z_]\w*$")


@dataclass
class Timing:
    """Milliseconds per call over the samples; ``host_ms`` is the host's share on CUDA."""

    ms: float
    p20_ms: float
    p80_ms: float
    samples: int
    host_ms: float | None = None

    def asdict(self) -> dict:
        return asdict(self)


def _sample(
    fn: Callable[[int], object],
    calls: int,
    device: torch.device,
    backlog: float,
    turns: Iterator[int],
):
    """Seconds per call, and the host's seconds per call (None on the CPU)."""
    if device.type != "cuda":
        begin = time.perf_counter()
        for i in itertools.islice(turns, calls):
            fn(i)
        return (time.perf_counter() - begin) / calls, None
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    # 2e9 cycles a second is at or above every GPU's clock, so the sleep is never too short.
    torch.cuda._sleep(int(2e9 * min(backlog * calls * 1.5 + 1e-4, 0.25)))
    start.record()
    begin = time.perf_counter()
    for i in itertools.islice(turns, calls):
        fn(i)
    host = (time.perf_counter() - begin) / calls
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / calls, host


def time_rounds(
    contenders: dict[str, Callable[[int], object]],
    device: torch.device,
    rounds: int,
    seconds: float,
) -> dict[str, Timing]:
    """Time all contenders, already warm, in the same interleaved rounds.

    ``contenders`` maps a name to fn(i), i the number of the call among those of all (to choose
    among rotating buffers). A contender that would need more than ``seconds`` takes part in fewer
    of the ``rounds``, spread evenly, but never in fewer than two.
    """
    samples: dict[str, list] = {name: [] for name in contenders}
    calls, taken, turns = {}, {}, itertools.count()
    for name, fn in contenders.items():
        _, host = _sample(fn, 1, device, 0.0, turns) if device.type == "cuda" else (0.0, None)
        first = _sample(fn, 1, device, host or 0.0, turns)
        calls[name] = max(1, min(MAX_CALLS, math.ceil(SLOT / first[0])))
        taken[name] = max(2, min(rounds, int(seconds / (first[0] * calls[name]))))
        if calls[name] == 1:
            samples[name].append(first)
    names = list(contenders)
    for r in range(rounds):
        shift = r % len(names)
        for name in names[shift:] + names[:shift]:
            n = taken[name] - (calls[name] == 1 and taken[name] < rounds)
            if (r + 1) * n // rounds == r * n // rounds:
                continue
            if calls[name] > 1:
                contenders[name](next(turns))  # brings its code, on a CPU its data into the caches
            host = samples[name][-1][1] if samples[name] else 0.0
            samples[name].append(_sample(contenders[name], calls[name], device, host or 0.0, turns))
    return {name: _timing(samples[name]) for name in names}


def _timing(samples: list) -> Timing:
    ms = sorted(1e3 * seconds for seconds, _ in samples)
    host = [1e3 * h for _, h in samples if h is not None]
    return Timing(
        ms=statistics.median(ms),
        p20_ms=_percentile(ms, 0.2),
        p80_ms=_percentile(ms, 0.8),
        samples=len(ms),
        host_ms=statistics.median(host) if host else None,
    )


def _percentile(ordered: list[float], q: float) -> float:
    """Linear interpolation between the order statistics."""
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@contextlib.contextmanager
def _profile(**settings):
    """torch.profiler, without the lines that its native part writes to stderr on every use."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with profile(**settings) as run:
            yield run
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def kept_bytes(layer: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that ``s = layer(x)`` keeps for its backward, net of s; call it on a warm layer."""
    return _forward(layer, x)[1]


def memory(
    layer: Callable[[Tensor], Tensor], x: Tensor, backward: Callable[[Tensor], object]
) -> tuple[int, int]:
    """Bytes kept, and at the peak, of ``s = layer(x); backward(s)``; call it on a warm layer."""
    s, kept, first = _forward(layer, x)
    _, _, second = _watched(lambda: backward(s), x)
    return kept, max(first, kept + s.untyped_storage().nbytes() + second)


def _forward(layer, x: Tensor) -> tuple[Tensor, int, int]:
    """s, the bytes kept without it, and those at the peak."""
    leaf = x.detach().requires_grad_()
    gc.collect()
    # clone() keeps nothing for its own backward, so x lives on only if the layer holds it.
    s, net, peak = _watched(lambda: layer(leaf.clone()), x)
    return s, net - s.untyped_storage().nbytes(), peak


def _watched(fn: Callable[[], object], x: Tensor) -> tuple:
    """fn(), the bytes that are allocated more behind it, and the most at any moment of it."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats(x.device)
        before = _requested(x.device, "current")
        found = fn()
        net = _requested(x.device, "current") - before
        return found, net, _requested(x.device, "peak") - before
    with _profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        found = fn()
    return found, *_allocations(run)


def _requested(device: torch.device, when: str) -> int:
    return torch.cuda.memory_stats(device)[f"requested_bytes.all.{when}"]


def _allocations(run) -> tuple[int, int]:
    """Net bytes that a profiled stretch allocated, and the most at any moment of it."""
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    net = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        net += event.nbytes()
        peak = max(peak, net)
    return net, peak


def shortest(fn: Callable[[], object], device: torch.device) -> float:
    """Seconds of the shorter of two calls; the first also builds what is built once."""
    return min(_sample(lambda i: fn(), 1, device, 0.0, iter([0]))[0] for _ in range(2))


def with_generated(fn: Callable[[], object], wanted: bool) -> tuple:
    """fn(), and if ``wanted`` the number of functions that inductor generated for its forward and
    its backward, which no profiler sees on the CPU; else none."""
    if not wanted:
        return fn(), []
    found, codes = run_and_get_code(fn)
    return found, [len(re.findall(r"^ +cpp_fused_\w+\(", code, re.M)) for code in codes]


def ops(
    forward: Callable[[], Tensor],
    backward: Callable[[Tensor], object],
    device: torch.device,
    generated: list[int],
) -> dict[str, int | None]:
    """Columns with the ops of ``s = forward(); backward(s)``, those of ``with_generated`` added."""
    out: list[Tensor] = []
    counts = [
        count_ops(lambda: out.append(forward()), device),
        count_ops(lambda: backward(out[0]), device),
    ]
    for i, count in enumerate(generated[:2]):
        counts[i] += count
    return dict(zip(("ops_forward", "ops_backward"), counts))


def count_ops(fn: Callable[[], object], device: torch.device) -> int | None:
    """Launches on CUDA, None where it cannot be profiled; on the CPU the outermost ops that move
    data, so no views or allocations.

    An op of another library counts once if all it calls are allocations, else as what it calls.
    """
    cuda = device.type == "cuda"
    try:
        with _profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as run:
            fn()
            if cuda:
                torch.cuda.synchronize(device)
    except Exception:
        if cuda:  # drivers may keep it from users; what takes part is timed all the same
            return None
        raise
    events = run.events()
    if cuda:
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    return sum(_ops(event) for event in events if event.cpu_parent is None)


def _ops(event) -> int:
    name = event.name
    if name == "aten::to":
        return int(any(child.name == "aten::_to_copy" for child in event.cpu_children))
    if name.startswith("aten::"):
        return int(_FREE_OPS.match(name) is None)
    below = sum(_ops(child) for child in event.cpu_children)
    library_op = _OP.match(name) is not None and not name.startswith("autograd::")
    return below or int(library_op)
