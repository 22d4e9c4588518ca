"""Random calls of the ops between guard pages, held to the reference.

Every tensor, of ours and of the caller, ends or begins at a page that must not be touched; sizes,
layouts, dtypes and options are drawn; gradients come in every layout that autograd may hand over.
A quarter of the calls then repeat an op as it was called, with one argument spoiled: it may raise,
and must not touch what is not its own.

    python tests/fuzz_ops.py --case 1234      # one case again, with its traceback
"""

import argparse
import ctypes
import faulthandler
import math
import mmap
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast
from snnfast import surrogate

PAGE, ARENA, ARENAS = mmap.PAGESIZE, 32 * mmap.PAGESIZE, 512
EXPECTED = (ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guarded:
    """Memory between two pages without access, given out anew in turns."""

    def __init__(self):
        self.arenas, self.turn, self.at_end = [], 0, True
        for _ in range(ARENAS):
            memory = mmap.mmap(-1, ARENA + 2 * PAGE)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            for page in (start, start + PAGE + ARENA):
                if _libc.mprotect(page, PAGE, 0):
                    raise OSError(ctypes.get_errno(), "mprotect")
            self.arenas.append(memory)

    def flat(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        size = count * dtype.itemsize
        if not 0 < size <= ARENA:
            return _EMPTY["empty"](count, dtype=dtype)
        self.turn = (self.turn + 1) % ARENAS
        offset = PAGE + (ARENA - size if self.at_end else 0)
        memory = memoryview(self.arenas[self.turn])[offset : offset + size]
        t = torch.frombuffer(memory, dtype=dtype)
        return t.fill_(math.nan) if dtype.is_floating_point else t.fill_(1)

    def strided(self, size, stride, dtype) -> torch.Tensor:
        size, stride = tuple(size), tuple(stride)
        if 0 in size:
            return _EMPTY["empty_strided"](size, stride, dtype=dtype)
        extent = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        return self.flat(extent, dtype).as_strided(size, stride)


_EMPTY = {name: getattr(torch, name) for name in ("empty", "empty_like", "empty_strided")}


def guard_allocations(memory: Guarded) -> None:
    """torch.empty and its kin, in this process, come from guarded memory."""
    snnfast.keep_results(0)  # or large results would not

    def dense(size):
        return [math.prod(size[d + 1 :]) for d in range(len(size))]

    def empty(*size, dtype=None, device=None, **named):
        size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        if named or (device is not None and torch.device(device).type != "cpu"):
            return _EMPTY["empty"](*size, dtype=dtype, device=device, **named)
        return memory.strided(size, dense(size), dtype or torch.float32)

    def empty_strided(size, stride, *, dtype=None, device=None):
        return memory.strided(size, stride, dtype or torch.float32)

    def empty_like(t, **named):
        if named:
            return _EMPTY["empty_like"](t, **named)
        return memory.strided(t.shape, _EMPTY["empty_like"](t).stride(), t.dtype)

    def new_empty(t, *size, dtype=None):
        return empty(*size, dtype=dtype or t.dtype)

    torch.empty, torch.empty_strided, torch.empty_like = empty, empty_strided, empty_like
    torch.Tensor.new_empty = new_empty


class Draw:
    """What a case draws: everything follows from its number."""

    def __init__(self, case: int, memory: Guarded):
        self.random, self.memory = random.Random(case), memory
        self.generator = torch.Generator().manual_seed(case)
        memory.at_end = self.random.random() < 0.7

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def choice(self, *values):
        return self.random.choice(values)

    def size(self, *, least: int = 0) -> int:
        return max(least, self.choice(0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31))

    def values(self, shape, dtype, scale=1.0) -> torch.Tensor:
        t = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return (t * scale).to(dtype)

    def laid_out(self, values: torch.Tensor) -> torch.Tensor:
        """The same values in guarded memory, in some layout that torch has."""
        shape, dims = list(values.shape), values.dim()
        kind = self.choice("contiguous", "contiguous", "permuted", "sliced", "expanded", "negative",
                           "channels_last", "gaps")  # fmt: skip
        order = list(range(dims))
        if kind == "permuted":
            self.random.shuffle(order)
        elif kind == "channels_last" and dims > 3:
            order = [0, 1, *range(3, dims), 2]
        elif kind == "expanded" and dims and values.numel():
            axis = self.random.randrange(dims)
            return self.laid_out(values.narrow(axis, 0, 1)).expand(shape)
        sizes = [shape[d] for d in order]
        extra = [0] * dims
        if kind in ("sliced", "gaps") and dims:
            extra[0 if kind == "sliced" else self.random.randrange(dims)] = self.choice(1, 2)
        padded = [n + e for n, e in zip(sizes, extra, strict=True)]
        strides = [math.prod(padded[d + 1 :]) for d in range(dims)]
        if kind == "sliced" and dims and self.chance(0.5):  # every other step
            strides[0] *= 2
        place = [0] * dims
        for position, d in enumerate(order):
            place[d] = strides[position]
        t = self.memory.strided(shape, place, values.dtype)
        if kind == "negative" and values.is_floating_point():
            return torch._neg_view(t.copy_(-values))
        return t.copy_(values)

    def tensor(self, shape, dtype, scale=1.0) -> torch.Tensor:
        return self.laid_out(self.values(shape, dtype, scale))


NAMES = tuple(cls.NAME for cls in surrogate.Surrogate.__subclasses__() if hasattr(cls, "NAME"))


def _neuron(draw: Draw, x_shape, channels: int | None, dtype) -> dict:
    """Arguments of lif and the tensors among them."""
    state = torch.float64 if dtype == torch.float64 else torch.float32
    arguments = {
        "v_threshold": draw.choice(1.0, 0.5, 0.0),
        "v_reset": draw.choice(0.0, None, -0.3),
        "decay_input": draw.chance(0.5),
        "detach_reset": draw.chance(0.5),
        "surrogate": draw.choice(*NAMES),
        "return_state": draw.choice(False, True, "all"),
    }
    kind = draw.choice("float", "float", "tensor", "channels", "inverse", "inf")
    if kind == "float":
        arguments["tau"] = draw.choice(1.0, 1.7, 2.0, 5.0)
    elif kind == "inf":
        arguments["tau"] = math.inf
    else:
        shape = [channels] if kind != "tensor" and channels else []
        rate = torch.rand(shape, generator=draw.generator, dtype=state)
        name = "inv_tau" if kind == "inverse" else "tau"
        arguments[name] = draw.laid_out(rate if name == "inv_tau" else 1 + 3 * rate)
    if draw.chance(0.4):
        arguments["v0"] = draw.tensor(x_shape, state, 0.5)
    return arguments


def _step_shape(draw: Draw, least: int) -> list[int]:
    shape = [draw.size(least=least) for _ in range(draw.choice(1, 2, 2, 3, 4))]
    while math.prod(shape) > 1500:
        shape[shape.index(max(shape))] //= 2
    return shape


def lif_case(draw: Draw):
    dtype = draw.choice(torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
    steps, shape = draw.size(), _step_shape(draw, 0)
    channels = shape[1] if len(shape) > 1 else None
    arguments = _neuron(draw, shape, channels, dtype)
    if draw.chance(0.25):
        arguments["timesteps"] = steps
        x = draw.tensor(shape, dtype)
    else:
        x = draw.tensor([steps, *shape], dtype)
    return snnfast.lif, {"x": x, **arguments}


def norm_lif_case(draw: Draw):
    dtype = draw.choice(torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    steps, shape = draw.size(least=1), [2, *_step_shape(draw, 1)]
    channels = shape[1]
    arguments = _neuron(draw, shape, channels, dtype)
    form = [steps, *shape]
    if draw.chance(0.25):
        arguments["timesteps"], form = steps, shape
    elif draw.chance(0.5):
        arguments["residual"] = draw.tensor(form, dtype)
    rows = {name: draw.tensor([channels], state) for name in ("weight", "bias")}
    if draw.chance(0.2):
        rows["weight"] = None
    mean, var = draw.values([channels], state), draw.values([channels], state).abs() + 0.5
    rows |= {"running_mean": mean, "running_var": var, "training": draw.chance(0.6)}
    return snnfast.norm_lif, {"y": draw.tensor(form, dtype), **rows, **arguments}


def loss_case(draw: Draw):
    dtype = draw.choice(torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
    steps, batch, classes = draw.size(least=1), draw.size(least=1), draw.size(least=1)
    shape = [steps, batch, classes]
    logits = draw.tensor(shape, dtype, 2.0)
    if draw.chance(0.5):
        target = draw.laid_out(torch.randint(classes, (batch,), generator=draw.generator))
    else:
        target = draw.laid_out(draw.values((batch, classes), dtype).softmax(-1))
    common = {"logits": logits, "target": target, "label_smoothing": draw.choice(0.0, 0.1)}
    common["temperature"] = draw.choice(1.0, 2.0, 3.0, 5.0)
    op = draw.choice("twkd", "tser", "tssd")
    if op == "tssd":
        aux = draw.tensor(shape, dtype)
        student = draw.random.randint(1, steps)
        return snnfast.tssd_loss, common | {"aux_logits": aux, "student_steps": student}
    common["teacher_logits"] = draw.tensor(shape[1:], dtype)
    if op == "tser":
        return snnfast.tser_loss, common
    own = {"self_target": draw.choice("mean", "correct"), "skip_all_wrong": draw.chance(0.5)}
    return snnfast.twkd_loss, common | own


def spikes_case(draw: Draw):
    dtype = draw.choice(torch.float32, torch.float16, torch.bfloat16, torch.float64)
    shape = _step_shape(draw, 0)
    s = draw.laid_out((draw.values(shape, torch.float64) > 0.5).to(dtype))

    def there_and_back(s, backend):
        bits = snnfast.pack_spikes(s, backend=backend)
        return snnfast.unpack_spikes(bits, s.shape, s.dtype, backend=backend)

    return there_and_back, {"s": s}


NEURONS = ("adaptive_lif", "alpha", "glif", "ilif", "klif", "liaf", "norse_lif", "synaptic",
           "ternary_lif")  # fmt: skip
"""Of ``snnfast.neurons`` those that are the same bits on every backend and never run away."""


def neuron_case(draw: Draw):
    """States are v0 .., up to two of its parameters are the tensors p0 and p1."""
    definition = getattr(snnfast.neurons, draw.choice(*NEURONS))
    dtype = draw.choice(torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    steps, shape = draw.size(), _step_shape(draw, 0)
    arguments = {"surrogate": draw.choice(*NAMES), "return_state": draw.choice(False, True, "all")}
    form = [steps, *shape]
    if draw.chance(0.25):
        arguments["timesteps"], form = steps, shape
    arguments["x"] = draw.tensor(form, dtype, 2.0)
    states = [f"v{k}" for k in range(len(definition.states))]
    if draw.chance(0.5):
        arguments |= {name: draw.tensor(shape, state, 0.5) for name in states}
    numbers = [key for key, value in definition.defaults.items() if isinstance(value, float)]
    learned = draw.random.sample(numbers, min(len(numbers), draw.choice(0, 1, 2)))
    for k, key in enumerate(learned):
        size = [shape[1]] if len(shape) > 1 and draw.chance(0.5) else []
        factor = torch.rand(size, generator=draw.generator, dtype=state) / 20 + 0.95
        arguments[f"p{k}"] = draw.laid_out(definition.defaults[key] * factor)

    def run(x, backend, p0=None, p1=None, **given):
        start = tuple(given.pop(name, None) for name in states)
        named = {key: p for key, p in zip(learned, (p0, p1)) if p is not None}
        results = definition(x, states=start, backend=backend, **given, **named)
        parts = results if isinstance(results, tuple) else (results,)
        return tuple(t for part in parts for t in (part if isinstance(part, tuple) else (part,)))

    run.__name__ = definition.name
    return run, arguments


CASES = (lif_case, lif_case, norm_lif_case, norm_lif_case, neuron_case, neuron_case, loss_case,
         spikes_case)  # fmt: skip
DIFFERENTIABLE = ("x", "y", "residual", "weight", "bias", "v0", "v1", "v2", "p0", "p1", "tau",
                  "inv_tau", "logits", "aux_logits")  # fmt: skip


def _outputs(result) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def _differentiated(op, arguments, backend, wanted, grads) -> tuple[list, list]:
    """Outputs, and gradients of the ``wanted`` arguments."""
    own = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            own[name] = value.detach().clone() if name.startswith("running") else value.detach()
            if name in wanted:
                own[name].requires_grad_()
    outputs = _outputs(op(**own, backend=backend))
    outputs += [own[name] for name in own if name.startswith("running")]
    pairs = [(o, g) for o, g in zip(outputs, grads or [None] * 9) if g is not None]
    pairs = [(o, g) for o, g in pairs if o.requires_grad]
    if not pairs:
        return outputs, []
    found = torch.autograd.grad(
        [o for o, _ in pairs], [own[n] for n in wanted], [g for _, g in pairs], allow_unused=True
    )
    return outputs, list(found)


def _has_values(t) -> bool:
    return t is not None and t.numel() > 0


def _close(ours, theirs, dtype, what, scale) -> str | None:
    """``scale``: what rounding errors are relative to; the gradient through a normalisation is the
    small difference of large ones, and float16 holds nothing beyond 65504."""
    if (ours is None) != (theirs is None):
        ours = torch.zeros_like(theirs) if ours is None else ours
        theirs = torch.zeros_like(ours) if theirs is None else theirs
    if ours is None:
        return None
    a, b = ours.detach().double(), theirs.detach().double()
    if a.shape != b.shape:
        return f"{what}: shape {list(a.shape)} instead of {list(b.shape)}"
    bound = {torch.float16: 2e-2, torch.bfloat16: 8e-2}.get(dtype, 2e-3)
    if dtype == torch.float16 and scale > 1e4:
        return None
    wrong = ~torch.isclose(a, b, rtol=bound, atol=bound * (0.05 + scale), equal_nan=True)
    if wrong.any():
        return f"{what}: {a[wrong][0].item():g} instead of {b[wrong][0].item():g}"
    return None


class _Calls(TorchDispatchMode):
    """Takes down how our ops were called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "snnfast":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def _spoilt(draw: Draw, value):
    if isinstance(value, torch.Tensor):
        kind = draw.choice("shorter", "other dtype", "less axes", "transposed", "expanded", "none",
                           "empty", "meta", "every other")  # fmt: skip
        if kind == "other dtype":
            return value.to(draw.choice(torch.float16, torch.float64, torch.int64, torch.uint8))
        if kind == "none":
            return None
        if kind == "meta":
            return value.to("meta")
        if kind == "empty" or not value.dim() or not value.numel():
            return value.new_empty([0])
        axis = draw.random.randrange(value.dim())
        if kind == "shorter":
            return value.narrow(axis, 0, value.shape[axis] // 2)
        if kind == "less axes":
            return value.select(axis, 0)
        if kind == "expanded":
            return value.narrow(axis, 0, 1).expand_as(value)
        if kind == "every other":
            return value[::2]
        return value.transpose(0, -1)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice(-1, 0, 1, 7, 99, 2**31, 2**62)
    if isinstance(value, float):
        return draw.choice(math.nan, math.inf, 0.0, -1e300)
    if isinstance(value, str):
        return draw.choice("cpu", "reference", "os", "")
    if isinstance(value, (list, tuple)) and value:
        return [_spoilt(draw, v) if draw.chance(0.3) else v for v in value]
    return value


def _attack(draw: Draw, calls) -> None:
    """One op of ours as it was called, but for one argument."""
    func, args = draw.random.choice(calls)
    args = list(args)
    at = draw.random.randrange(len(args))
    args[at] = _spoilt(draw, args[at])
    try:
        func(*args)
    except EXPECTED:
        pass


def run_case(case: int, memory: Guarded) -> str | None:
    """None, or what was wrong."""
    draw = Draw(case, memory)
    op, arguments = draw.choice(*CASES)(draw)
    tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    dtype = next(iter(tensors.values())).dtype
    wanted = [name for name in DIFFERENTIABLE if name in tensors and draw.chance(0.8)]
    try:
        expected, _ = _differentiated(op, arguments, "reference", [], None)
    except (ValueError, TypeError) as error:
        try:
            _differentiated(op, arguments, "cpu", [], None)
        except (ValueError, TypeError):
            return None
        return f"only the reference refuses: {error}"
    grads = [draw.tensor(o.shape, o.dtype) if draw.chance(0.8) else None for o in expected]
    expected = _differentiated(op, arguments, "reference", wanted, grads)
    if draw.chance(0.25):
        with _Calls() as taken:
            _differentiated(op, arguments, "cpu", wanted, grads)
        if taken.calls:
            _attack(draw, taken.calls)
        return None
    if draw.chance(0.25):
        with snnfast.packed_spikes():
            results = _differentiated(op, arguments, "cpu", wanted, grads)
    else:
        results = _differentiated(op, arguments, "cpu", wanted, grads)
    if op in (snnfast.lif, snnfast.norm_lif) and not torch.equal(results[0][0], expected[0][0]):
        # A statistic's last bit may put a potential on the other side of its threshold.
        flips = (results[0][0] != expected[0][0]).float().mean().item()
        batch = op is snnfast.norm_lif and arguments["training"]
        return None if batch and flips < 0.05 else f"{flips:.2%} of the spikes differ"
    if op.__name__ in NEURONS:
        wrong = [
            k for k, (a, b) in enumerate(zip(results[0], expected[0])) if not torch.equal(a, b)
        ]
        if wrong:
            return f"{op.__name__}: results {wrong} differ"
    named = zip((*range(9), *wanted), (*results[0], *[None] * 9)[:9] + tuple(results[1]),
                (*expected[0], *[None] * 9)[:9] + tuple(expected[1]))  # fmt: skip
    found = [g.abs().double().nan_to_num().max().item() for g in expected[1] if _has_values(g)]
    scale = max(found, default=0.0) * (10 if op is snnfast.norm_lif else 1)
    # Two values are normalised to the same two numbers whatever they are: their gradient is 0, and
    # what either computes is rounding.
    y = arguments.get("y")
    pairs = op is snnfast.norm_lif and arguments["training"]
    pairs = pairs and y.numel() == 2 * y.shape[1 if "timesteps" in arguments else 2]
    for what, ours, theirs in named:
        if pairs and what == "y":
            continue
        wrong = _close(ours, theirs, dtype, f"{op.__name__} {what}", scale)
        if wrong:
            return wrong
    return None


def _work(first: int, seconds: float, log: Path) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    memory = Guarded()
    guard_allocations(memory)
    end, case = time.monotonic() + seconds, first
    with log.open("a", buffering=1) as out:
        while time.monotonic() < end:
            out.write(f"case {case}\n")
            try:
                wrong = run_case(case, memory)
            except Exception as error:
                wrong = f"{type(error).__name__}: {str(error)[:300]}"
            if wrong:
                out.write(f"wrong {case}: {wrong}\n")
            case += 1


def run(seconds: float, seed: int) -> list[str]:
    """Random calls for so long; what was wrong, each with the number of its case."""
    end, case, failures, count = time.monotonic() + seconds, seed * 10_000_000, [], 0
    while (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            command = [sys.executable, __file__, "--work", str(case), str(left), str(log)]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = log.read_text().splitlines() if log.exists() else []
        numbers = [int(line.split()[1]) for line in lines if line.startswith("case ")]
        failures += [f"fuzz_ops: case {line[6:]}" for line in lines if line.startswith("wrong ")]
        count += len(numbers)
        if done.returncode == 0:
            break
        last = numbers[-1] if numbers else case
        why = done.stderr.strip().splitlines()[:1] if numbers else [done.stderr.strip()[-500:]]
        failures.append(f"fuzz_ops: case {last} ended the process ({done.returncode}): {why}")
        case = last + 1
        if not numbers:
            break
    print(f"fuzz_ops: {count} calls, {len(failures)} failures")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", nargs=3)
    parser.add_argument("--case", type=int)
    options = parser.parse_args()
    if options.work:
        _work(int(options.work[0]), float(options.work[1]), Path(options.work[2]))
    else:
        guarded = Guarded()
        guard_allocations(guarded)
        faulthandler.enable()
        print(run_case(options.case, guarded) or "as the reference")
