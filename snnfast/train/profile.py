"""Where the time and the memory of a training step go, layer by layer, against what they must cost.

Times are taken inside real steps: forward around each layer, backward around each node of the graph
that the layer made. Bytes kept are the storages that autograd saves, each counted once, where it is
saved first; a network that runs under saved-tensor hooks of its own (checkpoints, packed spikes)
shows what passes by those.

Bytes moved are what a layer's ops must at least read and write as they stand; the floor is the same
where batch norm and the neurons behind it are one op and spikes are kept as bits. Per layer, with
the bytes x of its input, y of its output, s of spikes and w of weights:

    convolution, linear   forward x + y + w, backward 2 y + x + 2 w, + x where x takes a gradient
    neurons               forward x + s, backward s + 2 x
    batch norm            forward 3 x, backward 5 x; floor where neurons follow: x and 2 x
    batch norm + neurons  forward 2 x + s, backward 2 s + 3 x; with a residual r, s + 3 x + 3 r
    anything else         forward x + y, backward x + y
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfast.nn import IF, LIF, BatchNormLIF, ParametricLIF

OTHER = "(between layers)"
NEURONS = (LIF, IF, ParametricLIF)
NORMS = nn.modules.batchnorm._BatchNorm
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
COPY_BYTES = 1 << 26


@dataclass
class Layer:
    """One layer: milliseconds and bytes of a training step; None where there is no model of it."""

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    forward_ms: float = 0.0
    backward_ms: float = 0.0
    moved: int | None = None
    floor: int | None = None
    kept: int = 0
    kept_floor: int | None = None

    @property
    def ms(self) -> float:
        return self.forward_ms + self.backward_ms


@dataclass
class Profile:
    """Layers in the order of their first call, the last being what lies between layers; the whole
    step in ms, and the speed of a copy on that device in bytes/s."""

    layers: list[Layer]
    forward_ms: float
    backward_ms: float
    copy_bandwidth: float

    def floor_ms(self, layer: Layer) -> float | None:
        """How long the layer's floor takes at the speed of a copy."""
        return None if layer.floor is None else 1e3 * layer.floor / self.copy_bandwidth


class _Clock:
    """Marks in time: on CUDA events of the stream, elsewhere the host's clock."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"

    def mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def backlog(self, seconds: float) -> None:
        """Keep a CUDA device busy for that long, so that the host can queue the work behind it:
        what events then measure is the work, and not how long the host takes to launch it."""
        if self.cuda:
            torch.cuda.synchronize()
            # 2e9 cycles a second is at or above every GPU's clock.
            torch.cuda._sleep(int(2e9 * min(seconds * 1.5 + 1e-4, 0.5)))

    def ms(self, begin, end) -> float:
        """Between two marks; on CUDA after a synchronisation."""
        return begin.elapsed_time(end) if self.cuda else 1e3 * (end - begin)


@dataclass
class _Step:
    """What one step's hooks leave: pairs of marks by layer, and the nodes a layer made."""

    clock: _Clock
    forward: dict[str, list] = field(default_factory=dict)
    backward: dict[str, list] = field(default_factory=dict)
    owners: dict = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)

    def ms(self, way: str) -> dict[str, float]:
        spans = getattr(self, way)
        return {name: sum(self.clock.ms(*pair) for pair in some) for name, some in spans.items()}


def profile(model: nn.Module, x: Tensor, dtype: torch.dtype, repeats: int = 5) -> Profile:
    """Profile training steps of ``model`` on ``x``: medians of ``repeats`` after one to warm up.

    The loss is cross-entropy with random labels, of the mean over time where there is one. With
    ``dtype`` other than float32 under autocast. Weights stay; running statistics move, as they do
    in training. On CUDA a further step shows how long the host takes for each half, so that it can
    be queued whole; a half of more launches than the queue holds shows some of the host's time.
    """
    model.train()
    layers = dict(_leaves(model))
    loss = partial(_loss, model, x, dtype)
    loss(lambda: None).backward()
    rows = _sizes(layers, loss)
    clock, steps, totals, host = _Clock(x.device), [], [], [0.0, 0.0]
    for _ in range(repeats + clock.cuda):
        step = _Step(clock)
        model.zero_grad(set_to_none=True)
        clock.backlog(host[0])
        begin = time.perf_counter()
        marks = [clock.mark()]
        with _Hooks() as hooks:
            for name, module in layers.items():
                hooks.around(module, partial(_enter, step, name), partial(_leave, step, name))
            value = loss(lambda marks=marks: marks.append(clock.mark()))
        host[0] = time.perf_counter() - begin
        _time_nodes(step, value)
        clock.backlog(host[1])
        begin = time.perf_counter()
        marks.append(clock.mark())
        value.backward()
        marks.append(clock.mark())
        host[1] = time.perf_counter() - begin
        if clock.cuda:
            torch.cuda.synchronize(x.device)
        totals.append((clock.ms(*marks[:2]), clock.ms(*marks[2:])))
        steps.append((step.ms("forward"), step.ms("backward")))
    model.zero_grad(set_to_none=True)
    totals, steps = totals[-repeats:], steps[-repeats:]
    forward, backward = (statistics.median(total[i] for total in totals) for i in range(2))
    for row in rows:
        row.forward_ms, row.backward_ms = (
            statistics.median(step[i].get(row.name, 0.0) for step in steps) for i in range(2)
        )
    other = next(row for row in rows if row.name == OTHER)
    other.forward_ms = max(0.0, forward - sum(row.forward_ms for row in rows))
    other.backward_ms = max(0.0, backward - sum(row.backward_ms for row in rows))
    return Profile(rows, forward, backward, _copy_bandwidth(x.device))


def _leaves(module: nn.Module, prefix: str = ""):
    """(name, module) of layers: modules without modules inside, and those with a model of bytes."""
    for name, child in module.named_children():
        name = f"{prefix}{name}"
        if isinstance(child, (*NEURONS, BatchNormLIF, NORMS, *WEIGHTED)):
            yield name, child
        elif not any(True for _ in child.children()):
            yield name, child
        else:
            yield from _leaves(child, f"{name}.")


def _loss(model: nn.Module, x: Tensor, dtype: torch.dtype, forward_done: Callable) -> Tensor:
    enabled = dtype != torch.float32
    with torch.autocast(x.device.type, dtype=dtype if enabled else None, enabled=enabled):
        logits = model(x)
    forward_done()
    logits = logits.float()
    logits = logits.mean(0) if logits.dim() == 3 else logits
    labels = torch.arange(len(logits), device=x.device) % logits.shape[1]
    return F.cross_entropy(logits, labels)


class _Hooks:
    """Hooks that are removed at the end of the block."""

    def __enter__(self):
        self.handles = []
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def around(self, module: nn.Module, enter: Callable, leave: Callable) -> None:
        """``enter(inputs)`` before and ``leave(inputs, outputs)`` after each call of the module."""
        before = module.register_forward_pre_hook(
            lambda module, args, kwargs: enter(_tensors((args, kwargs))), with_kwargs=True
        )
        after = module.register_forward_hook(
            lambda module, args, kwargs, out: leave(_tensors((args, kwargs)), _tensors(out)),
            with_kwargs=True,
        )
        self.handles += [before, after]


def _tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _enter(step: _Step, name: str, inputs: list[Tensor]) -> None:
    step.forward.setdefault(name, []).append([step.clock.mark()])


def _leave(step: _Step, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    step.forward[name][-1].append(step.clock.mark())
    # The nodes between outputs and inputs are this layer's, but for those that were there before.
    border = {tensor.grad_fn for tensor in inputs}
    stack = [tensor.grad_fn for tensor in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in border or node in step.owners or hasattr(node, "variable"):
            continue
        step.owners[node] = name
        stack += [parent for parent, _ in node.next_functions]


def _time_nodes(step: _Step, loss: Tensor) -> None:
    for node, name in step.owners.items():
        spans = step.backward.setdefault(name, [])

        def begin(grads, spans=spans):
            spans.append([step.clock.mark()])

        def end(inputs, outputs, spans=spans):
            spans[-1].append(step.clock.mark())

        node.register_prehook(begin)
        node.register_hook(end)


def _sizes(layers: dict[str, nn.Module], loss: Callable) -> list[Layer]:
    """A row for every layer in the order of the calls, with its bytes; the times are to come."""
    rows: dict[str, Layer] = {}
    inside: list[str] = []
    seen: dict[int, Tensor] = {}
    norms: dict[str, tuple[nn.Module, list[Tensor], Tensor]] = {}
    parameters = {p.untyped_storage().data_ptr() for m in layers.values() for p in m.parameters()}
    other = Layer(OTHER, "")

    def pack(tensor):
        key = tensor.untyped_storage().data_ptr()
        if key and key not in parameters and key not in seen:
            seen[key] = tensor.detach()  # held, so that no other storage gets its address
            row = rows[inside[-1]] if inside else other
            row.kept += tensor.untyped_storage().nbytes()
        return tensor.detach()

    def enter(name, inputs):
        rows.setdefault(name, Layer(name, type(layers[name]).__name__, moved=0, kept_floor=0))
        inside.append(name)

    def leave(name, inputs, outputs):
        inside.pop()
        if not inputs or not outputs:
            return
        row, module = rows[name], layers[name]
        row.shape = tuple(outputs[0].shape)
        moved, floor, kept = _model(module, inputs, outputs[0])
        row.moved, row.kept_floor = row.moved + moved, row.kept_floor + kept
        row.floor = (row.floor or 0) + floor
        if isinstance(module, NEURONS) and norms:
            # Fused with the norm before, the neurons keep what that one keeps anyway.
            last, (_, given, made) = norms.popitem()
            if made.numel() == inputs[0].numel():
                rows[last].floor -= 5 * _bytes(given[0])
                row.kept_floor -= _bytes(inputs[0])
        norms.clear()
        if isinstance(module, NORMS) and not isinstance(module, BatchNormLIF):
            norms[name] = (module, inputs, outputs[0])

    with _Hooks() as hooks, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for name, module in layers.items():
            hooks.around(module, partial(enter, name), partial(leave, name))
        loss(lambda: None)
    return [*rows.values(), other]


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def _model(module: nn.Module, inputs: list[Tensor], output: Tensor) -> tuple[int, int, int]:
    """(bytes moved, their floor where the layer stands alone, floor of the bytes kept)."""
    given = inputs[0]
    x, y = _bytes(given), _bytes(output)
    if isinstance(module, WEIGHTED):
        w = _bytes(module.weight)
        moved = 2 * x + 3 * y + 3 * w + (x if given.requires_grad else 0)
        spikes = bool(((given == 0) | (given == 1)).all())
        # Under autocast it keeps its own copy of the input, in the output's dtype.
        kept = (given.numel() + 7) // 8 if spikes else given.numel() * output.element_size()
        return moved, moved, kept
    if isinstance(module, BatchNormLIF):
        r = _bytes(inputs[1]) if len(inputs) > 1 and inputs[1].shape == given.shape else 0
        moved = 5 * x + 3 * y + (4 * r - y if r else 0)
        return moved, moved, x + (inputs[1].numel() // 8 if r else 0)
    if isinstance(module, NEURONS):
        return 3 * x + 2 * y, 3 * x + 2 * y, x
    if isinstance(module, NORMS):
        return 8 * x, 8 * x, x
    return 2 * x + 2 * y, 2 * x + 2 * y, x


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes."""
    clock, spans = _Clock(device), []
    count = COPY_BYTES * (4 if clock.cuda else 1)  # beyond an L2, too
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    out = torch.empty_like(source)
    clock.backlog(1e-3)
    for _ in range(8):
        begin = clock.mark()
        out.copy_(source)
        spans.append((begin, clock.mark()))
    if clock.cuda:
        torch.cuda.synchronize(device)
    return 2 * count / (1e-3 * statistics.median(clock.ms(*span) for span in spans[1:]))
