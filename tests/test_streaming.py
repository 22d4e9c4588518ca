"""``snnfast.streaming`` where models share neurons or are copied, and loops over single steps."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import snnfast
from snnfast.nn import LIF, BatchNormLIF, ParametricLIF, _single_steps, checkpoint_spikes, fuse

T, B, C = 5, 6, 7


class TwoPlaces(nn.Module):
    """One neuron behind both layers, as is fine with ReLU."""

    def __init__(self, neuron):
        super().__init__()
        self.fc1, self.fc2, self.neuron = nn.Linear(C, C), nn.Linear(C, C), neuron

    def forward(self, x):
        return self.neuron(self.fc2(self.neuron(self.fc1(x))))


class Loop(nn.Module):
    """A loop over time within the model."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Sequential(nn.Linear(C, C), LIF())

    def forward(self, x):
        return torch.cat([self.cell(x[t : t + 1]) for t in range(x.shape[0])])


def net():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(C, C), LIF(tau=1.7), nn.Linear(C, C), ParametricLIF())
    model[2].weight.data.mul_(4)  # so that the last layer spikes, too
    return model


def sequence(*shape):
    return 3 * torch.randn(shape or (T, B, C))


@pytest.mark.parametrize("make", [LIF, ParametricLIF])
def test_a_neuron_at_two_places_is_refused(make):
    model, x = TwoPlaces(make()), sequence()
    whole = model(x)
    with snnfast.streaming(model), pytest.raises(ValueError, match="called once in a forward"):
        model(x)
    twice = nn.Sequential(nn.Linear(C, C), BatchNormLIF(C)).eval()
    twice.append(twice[1])
    with (
        snnfast.streaming(twice),
        pytest.raises(ValueError, match="second call of LIF"),
    ):
        twice(sequence(T, B, C))
    assert torch.equal(model(x), whole)  # and outside it is fine


def test_a_loop_within_the_model_streams_what_it_calls():
    model, x = Loop(), sequence()
    with snnfast.streaming(model), pytest.raises(ValueError, match="stream the part that the loop"):
        model(x)
    with snnfast.streaming(model.cell):
        pieces = torch.cat([model(part) for part in x.split(2)])
    assert torch.equal(pieces, model.cell(x)) and pieces.any()


def test_parts_of_a_model_stream_on_their_own():
    model, x = net(), sequence()
    whole = model(x)
    with snnfast.streaming(model):
        pieces = [model(x[:2]), model[2:](model[:2](x[2:4])), model(x[4:])]
    assert torch.equal(torch.cat(pieces), whole) and whole.any()


def test_the_block_can_be_entered_again_after_an_error():
    model, x = net(), sequence()
    with snnfast.streaming(model):
        with pytest.raises(RuntimeError):
            model(x[..., :3])
        model(x), model(x)
    with snnfast.streaming(model):
        assert torch.equal(model(x), net()(x))
    hooks = (model._forward_hooks, model._forward_pre_hooks)
    assert not any(hooks) and all(m._called is None for m in model if isinstance(m, LIF))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
}


@pytest.mark.parametrize("build", [net, lambda: fuse(net()), lambda: BatchNormLIF(C).eval()])
@pytest.mark.parametrize("how", COPIES)
def test_copies_do_not_stream(how, build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, x = build(), sequence()
    whole = model(x)
    with snnfast.streaming(model):
        first = model(x[:2])
        moved = COPIES[how](model)
        assert torch.equal(moved(x), whole) and torch.equal(moved(x), whole)  # each from rest
        assert torch.equal(torch.cat([first, model(x[2:])]), whole)  # undisturbed by the copy
        with snnfast.streaming(moved):  # and the copy may stream by itself
            pieces = torch.cat([moved(x[:2]), moved(x[2:])])
        assert torch.equal(pieces, whole)
        twice = nn.Sequential(moved, moved)
        with snnfast.streaming(twice), pytest.raises(ValueError, match="called once"):
            twice(x)
    for neuron in moved.modules():
        assert not getattr(neuron, "_streaming", False) and getattr(neuron, "_v", None) is None


def test_a_fused_model_stays_fused_where_a_part_streams():
    """The part is inlined in the forward of the whole, which a hook on it would undo."""
    plain, x = nn.Sequential(nn.Sequential(LIF(), nn.BatchNorm1d(B)), LIF()).eval(), sequence()
    plain[0][1].weight.data.fill_(3.0)
    outputs = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (plain, fuse(plain)):
            with snnfast.streaming(model[0]):
                outputs.append(torch.cat([model(part) for part in x.split(2)]))
    assert torch.equal(*outputs) and outputs[0].any()


def test_a_checkpointed_block_streams_through_backward():
    model, x = net(), sequence()
    plain = copy.deepcopy(model)
    model[1] = checkpoint_spikes(model[1])
    model[3] = checkpoint_spikes(model[3])
    for m in (plain, model):
        with snnfast.streaming(m):
            (m(x[:2]).sum() + m(x[2:]).sum()).backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.unpoisoned
def test_streams_compiled():
    model, x = net(), sequence(6, B, C)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        whole = model(x)
        for streamed in (model, compiled):
            with snnfast.streaming(streamed):
                pieces = torch.cat([compiled(part) for part in x.split(2)])
            assert torch.equal(pieces, whole)


@pytest.fixture
def unwarned(monkeypatch):
    monkeypatch.setattr(_single_steps, "_warned", False)


@pytest.fixture
def silent(unwarned):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def conv_net(side):
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), LIF(), nn.Conv2d(3, 3, 3, padding=1), LIF())


@pytest.mark.parametrize(
    ("model", "shape"),
    [(net(), (T, B, C)), (conv_net(8), (T, B, 2, 8, 8)), (nn.Sequential(LIF(), net()), (T, B, C))],
    ids=["linear", "conv", "neuron first"],
)
def test_a_loop_over_single_steps_is_warned_of_once(unwarned, model, shape):
    x = sequence(*shape)
    with pytest.warns(UserWarning) as caught:
        for _ in range(3):
            sum(model(x[t]) for t in range(T)).sum().backward()
    (warning,) = caught
    text = str(warning.message)
    assert "loop over single steps" in text and "snnfast.streaming" in text and "x[t:t+1]" in text
    assert f"T={B}" in text  # what was taken for time


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("loop", [lambda x: (x[t] for t in range(T)), iter], ids=["x[t]", "iter"])
def test_single_steps_without_a_graph(unwarned, mode, loop):
    model, x = nn.Sequential(LIF(), nn.Flatten(1), nn.Linear(C, C)), sequence()
    with mode(), pytest.warns(UserWarning, match="loop over single steps"):
        for x_t in loop(x):
            model(x_t)


class Shared(nn.Module):
    """One neuron behind five layers."""

    def __init__(self):
        super().__init__()
        self.layers, self.lif = nn.ModuleList(nn.Linear(C, C) for _ in range(5)), LIF()

    def forward(self, x):
        for layer in self.layers:
            x = self.lif(layer(x))
        return x


class Attention(nn.Module):
    """One neuron for query, key and value, twice."""

    def __init__(self):
        super().__init__()
        self.layers, self.lif = nn.ModuleList(nn.Linear(C, C) for _ in range(6)), LIF()

    def forward(self, x):
        for i in (0, 3):
            q, k, v = (self.lif(layer(x)) for layer in self.layers[i : i + 3])
            x = q * k.mean(0) + v
        return x


def accumulate(model, x):
    for _ in range(6):
        model(x).sum().backward()


def keep_losses(model, x):
    losses = []
    for _ in range(6):
        losses.append(model(x).sum())
        losses[-1].backward()


def two_views(model, x):
    for _ in range(6):
        (model(x) * model(-x)).sum().backward()


def evaluate(model, x):
    with torch.no_grad():
        return [model(x + i) for i in range(6)]


def evaluate_with_gradients(model, x):
    return [model(x + i).argmax() for i in range(6)]


def keep_outputs_of_sequences(model, x):
    return [model(x.unsqueeze(1)) for _ in range(6)]


def stream(model, x):
    with snnfast.streaming(model):
        if not isinstance(model, (Shared, Attention)):
            return [model(x[t : t + 1]) for t in range(T)]


def by_slices(model, x):
    with torch.no_grad():
        return [model(part) for part in torch.cat([x] * 6).split(T)]


USES = [
    accumulate, keep_losses, two_views, evaluate, evaluate_with_gradients,
    keep_outputs_of_sequences, stream, by_slices,
]  # fmt: skip


@pytest.mark.parametrize("use", USES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("model", [net, Shared, Attention, LIF], ids=lambda f: f.__name__)
def test_no_false_alarm(silent, model, use):
    """Even where sequences [T, C] without a batch look like single steps."""
    x = sequence(T, C).requires_grad_(model is LIF)
    for _ in range(2):
        use(model(), x)


def test_other_shapes_are_no_single_steps(silent):
    for shape in ((T, B, C), (T, B, 4, 5), (T, B, 2, 8, 8), (T,)):
        x, neuron = sequence(6, *shape).requires_grad_(), LIF()
        sum(neuron(x[i]) for i in range(6)).sum().backward()
        with torch.no_grad():
            [neuron(x[i]) for i in range(6)]


def test_states_of_the_callers_own_are_no_single_steps(silent):
    neuron, x, v = LIF(return_state=True), sequence(T, C), torch.zeros(C)
    kept = []
    for t in range(T):
        s, v = neuron(x[t : t + 1], v)
        kept.append(s)
    assert torch.equal(torch.cat(kept), snnfast.lif(x))
    images = sequence(T, B, C)
    for neuron in (LIF(), ParametricLIF()):
        [neuron(images[t], timesteps=3) for t in range(T)]
        [neuron(images[t], v) for t in range(T)]


def test_windows_of_a_recording_are_no_single_steps(silent):
    x, neuron = sequence(9, C), LIF()
    [neuron(x[i : i + 3]) for i in range(6)]


@pytest.mark.unpoisoned
def test_a_compiled_loop_breaks_no_graph(silent):
    model, x = net(), sequence()
    step = torch.compile(model, backend="aot_eager", fullgraph=True)
    sum(step(x[t]) for t in range(T)).sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_running_again_in_backward_is_refused(reentrant):
    linear, lif = torch.nn.Linear(4, 4), snnfast.nn.LIF()
    model = torch.nn.Sequential(linear, lif)
    x = torch.randn(3, 2, 4, requires_grad=True)
    with snnfast.streaming(model):
        s = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
        with pytest.raises(RuntimeError, match=r"use snnfast\.nn\.checkpoint_spikes"):
            s.sum().backward()
