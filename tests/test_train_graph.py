"""``graphed`` and ``cuda_graph``: captured steps are those without a graph, bit for bit. Without a
GPU the graph is a list of the operations that were called, run again on the same memory."""

import contextlib
import copy
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from train_cases import WAITS, taken_for_a_gpu, trainer_of

import snnfast
from snnfast.train import graph

pytestmark = pytest.mark.unpoisoned


class _Capture(TorchDispatchMode):
    """Lists the operations. It runs them, too, in place of the first replay; what they changed is
    put back where one of them is refused."""

    def __init__(self, target):
        super().__init__()
        self.calls, self.before = target.calls, []

    def __exit__(self, error, *more):
        super().__exit__(error, *more)
        with torch.no_grad():
            for t, value in reversed(self.before if error else []):
                t.copy_(value)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.name().split("::")[1].split(".")[0] in WAITS:
            raise RuntimeError(f"{op} is not permitted when stream is capturing")
        if op._schema.is_mutable or "batch_norm" in op.name():
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.before += [(t, t.clone()) for t in given]
        out = op(*args, **kwargs or {})
        self.calls.append((op, args, kwargs or {}, out))
        return out


def _memory(values):
    return {t.untyped_storage()._cdata for t in tree_leaves(values) if isinstance(t, torch.Tensor)}


class _Graph:
    def __init__(self):
        self.calls, self.replays = [], 0
        _Graph.made.append(self)

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        if self.replays == 1:
            return
        for op, args, kwargs, out in self.calls:
            given = _memory((args, kwargs))
            for old, new in zip(tree_leaves(out), tree_leaves(op(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and not _memory(old) & given:
                    old.copy_(new)


class _Capturing:
    def __init__(self, target, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.capture = _Capture(target)

    def __enter__(self):
        self.before, _Stream.current = _Stream.current, _Stream()
        self.capture.__enter__()

    def __exit__(self, error, *more):
        self.capture.__exit__(error, *more)
        if error:
            raise RuntimeError("operation failed due to a previous error during capture")
        _Stream.current = self.before


class _Stream:
    current = None

    def wait_stream(self, other):
        pass


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were begun."""
    monkeypatch.setattr(graph, "_why_not", lambda inputs: None)
    stubs = {
        "CUDAGraph": _Graph,
        "graph": _Capturing,
        "Stream": _Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda: _Stream.current,
        "set_stream": lambda stream: setattr(_Stream, "current", stream),
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    _Graph.made = []
    first = _Stream.current = _Stream()
    yield _Graph.made
    assert _Stream.current is first


def weights(trainer):
    """All that training leaves, after three epochs of four batches and a smaller one."""
    rows = []
    for step in trainer.steps():
        if step.last:
            rows.append(trainer.means())
    left = [*trainer.model.state_dict().values(), *trainer.average.parameters.values()]
    momentum = [s["momentum_buffer"] for s in trainer.optimizer.state.values()]
    return [t.clone() for t in left + momentum], rows, trainer.scaler.state_dict()


def assert_same(ours, expected):
    assert ours[1:] == expected[1:]
    for a, b in zip(ours[0], expected[0], strict=True):
        assert torch.equal(a, b)


OPTIONS = {
    "fp16": {"amp": "fp16", "mixup": 0.2, "accumulate": 2},
    "bf16": {"amp": "bf16", "channels_last": True},
    "sequences": {"sequences": True, "packed_spikes": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_recipe_with_a_graph_trains_as_without(name, graphs, monkeypatch):
    taken_for_a_gpu(monkeypatch)

    def run(**more):
        torch.manual_seed(0)
        return trainer_of(torch.device("cpu"), epochs=3, **OPTIONS[name], **more)

    plain = run()
    snnfast.train.loop.fuse(plain.optimizer, True)  # as with a graph
    expected = weights(plain)
    assert_same(weights(run(cuda_graph=True)), expected)
    (made,) = graphs
    assert made.replays == 3 * 4 - graph.WARMUP and len(made.calls) > 200


def test_a_run_goes_on(graphs, monkeypatch):
    taken_for_a_gpu(monkeypatch)

    def run():
        torch.manual_seed(0)
        return trainer_of(torch.device("cpu"), epochs=3, amp="bf16", cuda_graph=True)

    expected = weights(run())
    begun, other = run(), run()
    steps = begun.steps()
    for _ in range(7):
        next(steps)
    other.model.load_state_dict(begun.model.state_dict())
    other.average.load(begun.average.parameters)
    other.restore(copy.deepcopy(begun.state()))
    left, rows, scale = weights(other)
    assert_same((left, rows, scale), (expected[0], expected[1][1:], expected[2]))
    assert len(graphs) == 3


def test_a_recipe_whose_step_cannot_be_captured_trains_all_the_same(graphs, monkeypatch):
    taken_for_a_gpu(monkeypatch)

    total_norm = torch.nn.utils.get_total_norm

    def reads(gradients):  # when there are gradients, and the scaler has begun
        norm = total_norm(gradients)
        return norm * (norm.item() >= 0)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", reads)

    def run(**more):
        torch.manual_seed(0)
        return trainer_of(torch.device("cpu"), epochs=2, amp="fp16", **more)

    expected = weights(run())
    with pytest.warns(UserWarning, match="without a graph: it cannot be captured: .*local_scalar"):
        ours = weights(run(cuda_graph=True))
    assert_same(ours, expected)


@pytest.mark.parametrize(
    ("more", "reason"),
    (({}, "the device must be cuda, got cpu"), ({"compile": "default"}, "compile is default")),
)
def test_a_recipe_that_asks_for_what_cannot_be_says_so(more, reason):
    with pytest.warns(UserWarning, match=f"cuda_graph: steps run without a graph: {reason}"):
        trainer = trainer_of(torch.device("cpu"), cuda_graph=True, **more)
    assert trainer._graphed is None and not trainer.optimizer.param_groups[0]["fused"]


# One's own loop


def own_step(calls):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), snnfast.nn.LIF(), torch.nn.Linear(8, 3))
    rate = torch.tensor(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, fused=True)

    def step(x, target):
        calls.append(x.shape)
        logits = model(x).mean(0)
        loss = torch.nn.functional.cross_entropy(logits, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.detach(), "all": [logits.detach(), logits.argmax(-1)]}

    return step, rate, model


def test_a_step_of_ones_own(graphs):
    batches = [(2 * torch.rand(2, n, 4), torch.arange(n) % 3) for n in (5, 5, 5, 5, 3, 5, 5, 3)]

    def run(wrap):
        calls = []
        step, rate, model = own_step(calls)
        step, outputs = wrap(step), []
        for n, batch in enumerate(batches):
            rate.fill_(0.5 / (n + 1))
            outputs.append(step(*batch))
        return tree_leaves(outputs) + list(model.parameters()), calls

    expected, _ = run(lambda step: step)
    ours, calls = run(lambda step: snnfast.train.graphed(step, warmup=2))
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)
    # Two warm-ups, the capture, and those of another form.
    assert [shape[1] for shape in calls] == [5, 5, 5, 3, 3]
    assert graphs[0].replays == 4


def test_a_step_on_a_cpu_runs_as_it_is():
    calls = []
    step, _, _ = own_step(calls)
    step = snnfast.train.graphed(step)
    with pytest.warns(UserWarning, match="must be on a CUDA device, got cpu") as warned:
        step(torch.rand(2, 5, 4), torch.arange(5) % 3)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(torch.rand(2, 5, 4), torch.arange(5) % 3)
    assert len(calls) == 2 and step.reason.endswith("got cpu")


def test_graphed_refuses_in_words(monkeypatch):
    with pytest.raises(TypeError, match="graphed: step must be a function, got int"):
        snnfast.train.graphed(3)
    for warmup in (0, True, 1.5):
        with pytest.raises(ValueError, match="graphed: warmup must be an int >= 1, got"):
            snnfast.train.graphed(print, warmup=warmup)
    assert "inputs must be tensors, got int" in graph._why_not((3,))
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"))
    assert graph._why_not((torch.ones(2),)) is None
    assert graph._why_not((torch.ones(2, requires_grad=True),)).endswith("not require gradient")
    assert graph._why_not(()) == "it has no inputs"
