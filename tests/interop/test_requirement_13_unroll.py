"""snnTorch's neurons over all timesteps by ``snnfast.nn.unroll``, against the loop over the neuron
itself: spikes and states bit for bit, gradients as near as two orders of summing are."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from over_time import close, equal, gradients, inputs, looped
from peer_neurons import package
from torch import nn

import snnfast
from snnfast.nn import unroll

snn = package("snntorch")
surrogate, utils = package("snntorch.surrogate"), package("snntorch.utils")

STATES = {
    "Leaky": ("mem",), "Synaptic": ("syn", "mem"), "Lapicque": ("mem",),
    "Alpha": ("syn_exc", "syn_inh", "mem"),
}  # fmt: skip
NUMBERS = {
    "Leaky": {"beta": 0.9}, "Synaptic": {"alpha": 0.9, "beta": 0.8},
    "Lapicque": {"beta": 0.6, "threshold": 0.4}, "Alpha": {"alpha": 0.9, "beta": 0.8},
}  # fmt: skip
MECHANISMS = [{"reset_mechanism": m} for m in ("subtract", "zero", "none")]
NEURONS = (
    [(kind, NUMBERS[kind] | mechanism) for kind in STATES for mechanism in MECHANISMS]
    + [
        (kind, NUMBERS[kind] | mechanism | {"reset_delay": False})
        for kind in ("Leaky", "Synaptic")
        for mechanism in MECHANISMS
    ]
    + [
        ("Leaky", {"beta": 0.3, "graded_spikes_factor": 0.5, "reset_delay": False}),
        ("Lapicque", {"R": 5, "C": 2, "time_step": 0.5, "threshold": 0.4}),
        ("Lapicque", {"beta": 0.8, "C": 3.0, "threshold": 0.4}),
    ]
)


@pytest.fixture(autouse=True)
def none_left():
    yield
    snn.SpikingNeuron.init()


def pair(kind, **options):
    """The neuron that is looped over, and an unrolled one like it."""
    make = getattr(snn, kind)
    return make(**options), unroll(make(**options))


@pytest.mark.parametrize("data", ["random", "grid"])
@pytest.mark.parametrize(("kind", "options"), NEURONS, ids=lambda v: str(v))
def test_requirement_13_gives_what_the_loop_gives(kind, options, data):
    """Two calls, a reset, a third; with hidden states and with states returned."""
    learned = {"learn_threshold": True} | ({} if kind == "Lapicque" else {"learn_beta": True})
    if "graded_spikes_factor" in options:
        learned["learn_graded_spikes_factor"] = True
    for hidden in ({"init_hidden": True}, {"init_hidden": True, "output": True}, {}):
        theirs, ours = pair(kind, **options, **hidden, **learned)
        for reset in (False, False, True):
            if reset:
                theirs.reset_mem(), ours.reset_mem()
            x = inputs(data, 11, 3, 5).requires_grad_()
            wanted, found = looped(theirs, x), ours(x)
            found = found if isinstance(found, tuple) else (found,)
            equal(found, wanted)
            assert 0 < found[0].detach().mean() < 1
            for name in STATES[kind]:
                equal(getattr(ours, name), (getattr(theirs, name),))
            found, wanted = (
                gradients(
                    (*results, *(getattr(n, name) for name in STATES[kind])), [x, *n.parameters()]
                )
                for n, results in ((ours, found), (theirs, wanted))
            )
            close(found[:1], wanted[:1])
            close(found[1:], wanted[1:], 1e-4)  # sums that cancel
            theirs.detach_hidden()  # of all, ours too


def test_requirement_13_begins_at_a_state_that_is_given():
    for kind, names in STATES.items():
        theirs, ours = pair(kind, **NUMBERS[kind])
        x = inputs("random", 7, 2, 3)
        states = [torch.randn(2, 3).requires_grad_() for _ in names]
        wanted, found = looped(theirs, x, *states), ours(x, *states[:-1], mem=states[-1])
        equal(found, wanted)
        close(gradients(found, states), gradients(wanted, states))
        # As the loop's: what comes back is where the next call begins.
        equal(ours(x, *(v[-1] for v in found[1:])), looped(theirs, x, *(v[-1] for v in wanted[1:])))


SHAPES = [
    ((4, 3), (), (1,)), ((4, 3), (3,), ()), ((4, 3), (1, 3), (3,)), ((4, 3), (4, 1), (3,)),
    ((2, 3, 4, 5), (3, 1, 1), (1, 3, 1, 1)), ((2, 3, 4, 5), (5,), ()),
    ((2, 3, 4, 5), (3, 1, 1), (3, 4, 5)), ((2, 3, 4, 5), (2, 1, 1, 1), (3, 1, 1)),
    ((6,), (6,), ()), ((6,), (), ()), ((), (), ()),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "beta", "threshold"), SHAPES, ids=lambda v: str(v))
@pytest.mark.parametrize("kind", ["Leaky", "Synaptic", "Alpha"])
def test_requirement_13_learns(kind, shape, beta, threshold):
    """beta and threshold, of whatever shape broadcasts to a timestep."""

    def make():
        torch.manual_seed(0)
        more = {} if kind == "Leaky" else {"alpha": 0.95}
        return getattr(snn, kind)(
            beta=0.2 + 0.6 * torch.rand(beta), threshold=0.5 + torch.rand(threshold),
            learn_beta=True, learn_threshold=True, init_hidden=True, output=True, **more,
        )  # fmt: skip

    theirs, ours = make(), unroll(make())
    x = inputs("random", 9, *shape)
    for _ in range(2):
        wanted, found = looped(theirs, x), ours(x)
        equal(found, wanted)
        close(
            gradients(found, [ours.beta, ours.threshold]),
            gradients(wanted, [theirs.beta, theirs.threshold]),
            1e-4,  # sums that cancel
        )
        theirs.detach_hidden()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Leaky", {"beta": 1, "threshold": 2}),
        ("Leaky", {"beta": np.float64(0.9), "threshold": np.float64(0.7)}),
        ("Leaky", {"beta": 1.2, "threshold": np.float32(0.7)}),
        ("Synaptic", {"alpha": np.float64(0.9), "beta": torch.tensor(0.7, dtype=torch.float64)}),
        ("Synaptic", {"alpha": 1, "beta": -0.5}),
    ],
    ids=str,
)
def test_requirement_13_takes_numbers_of_any_kind(kind, options):
    theirs, ours = pair(kind, init_hidden=True, output=True, **options)
    for data in ("random", "grid"):
        x = inputs(data, 11, 3, 5)
        equal(ours(x), looped(theirs, x))


def test_requirement_13_shows_one_input_at_every_step():
    theirs, ours = pair("Leaky", beta=0.9, init_hidden=True)
    image = torch.rand(2, 3, 4).requires_grad_()
    wanted, found = looped(theirs, [image] * 12), ours(image, timesteps=12)
    equal(found, wanted)
    close(gradients((found,), [image]), gradients(wanted, [image]))


class Window(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 0.5 * (torch.abs(x) < 0.7).float()


class Twice(Window):
    """Has another gradient at its second call."""

    calls = 0

    @staticmethod
    def backward(ctx, grad):
        Twice.calls += 1
        return grad * (1.0 if Twice.calls > 2 else 2.0)


class AtZero(Window):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).float()


class Clipped(Window):
    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-1, 1)


def _own(x, grad, spikes):
    return grad * spikes / (3 * torch.abs(x) + 1)


SPIKE_GRADS = {
    "atan": lambda: surrogate.atan(alpha=3.0),
    "fast_sigmoid": lambda: surrogate.fast_sigmoid(slope=10),
    "sigmoid": lambda: surrogate.sigmoid(slope=4),
    "straight_through": surrogate.straight_through_estimator,
    "triangular": lambda: surrogate.triangular(threshold=0.5),
    "heaviside": surrogate.heaviside,
    "escape": lambda: surrogate.spike_rate_escape(beta=2, slope=3),
    "SFS": lambda: surrogate.SFS(slope=5, B=0.25),
    "custom": lambda: surrogate.custom_surrogate(_own),
    "a function": lambda: Window.apply,
    "another closure": lambda: lambda x: Window.apply(x),
}


@pytest.mark.parametrize("name", SPIKE_GRADS)
def test_requirement_13_knows_the_surrogate(name):
    x = inputs("grid", 15, 4, 30).requires_grad_()
    theirs, ours = pair("Leaky", beta=0.5, init_hidden=True, spike_grad=SPIKE_GRADS[name]())
    wanted, found = looped(theirs, x), ours(x)
    equal(found, wanted)
    close(gradients((found,), [x]), gradients(wanted, [x]))


class Slope:
    """A spike function whose number may change."""

    def __init__(self, slope):
        self.slope = slope

    def __call__(self, x):
        return surrogate.fast_sigmoid(self.slope)(x)


def test_requirement_13_reads_the_surrogate_s_number_at_each_call():
    theirs, ours = pair("Leaky", beta=0.5, init_hidden=True, spike_grad=Slope(2.0))
    x = inputs("random", 9, 4).requires_grad_()
    for slope in (2.0, 20.0):
        theirs.spike_grad.slope = ours.spike_grad.slope = slope
        wanted, found = looped(theirs, x), ours(x)
        close(gradients((found,), [x]), gradients(wanted, [x]))
        theirs.reset_mem(), ours.reset_mem()


def test_requirement_13_no_surrogate_no_gradient():
    theirs, ours = pair("Leaky", beta=0.5, surrogate_disable=True)
    x = inputs("random", 9, 4).requires_grad_()
    wanted, found = looped(theirs, x), ours(x)
    equal(found, wanted)
    close(gradients(found, [x]), gradients(wanted, [x]))


class Sooner(snn.Leaky):
    """Only other defaults."""

    def __init__(self):
        super().__init__(beta=0.7, threshold=0.4, init_hidden=True)


class Fires(Sooner):
    def fire(self, mem):
        return super().fire(mem)


def with_own_forward():
    neuron = snn.Leaky(beta=0.5)
    neuron.forward = neuron.forward
    return neuron


def with_a_changed_reset():
    neuron = snn.Leaky(beta=0.5, reset_delay=False)
    neuron.reset_mechanism = "zero"
    return neuron


def rounded(mem):
    return mem.round()


LEFT = {
    "inhibition=True": lambda: snn.Leaky(beta=0.5, inhibition=True),
    "state_quant=rounded": lambda: snn.Leaky(beta=0.5, state_quant=rounded),
    "Fires, which has its own fire": Fires,
    "Leaky, which has its own forward": with_own_forward,
    "reset_mechanism that was changed": with_a_changed_reset,
    "spike_grad=SSO, which has a gradient that is drawn at random": (
        lambda: snn.Leaky(beta=0.5, spike_grad=surrogate.SSO())
    ),
    "spike_grad=LSO, which fails": lambda: snn.Leaky(beta=0.5, spike_grad=surrogate.LSO()),
    "does not give 1 where": lambda: snn.Leaky(beta=0.5, spike_grad=AtZero.apply),
    "is not a factor": lambda: snn.Leaky(beta=0.5, spike_grad=Clipped.apply),
    "not a function of its argument alone": lambda: snn.Leaky(beta=0.5, spike_grad=Twice.apply),
    "cannot be fused": lambda: snn.Leaky(
        beta=0.5, spike_grad=surrogate.custom_surrogate(lambda x, g, s: g * x.mean())
    ),
}
STRANGE = {
    "got Linear": lambda: nn.Linear(2, 2),
    "recurrent connection": lambda: snn.RLeaky(beta=0.5, linear_features=3),
    "got RSynaptic": lambda: snn.RSynaptic(alpha=0.9, beta=0.5, linear_features=3),
    "got SLSTM": lambda: snn.SLSTM(3, 3),
    "got NoneType": lambda: None,
}


@pytest.mark.filterwarnings("ignore:Inhibition")
@pytest.mark.parametrize("reason", [*LEFT, *STRANGE])
def test_requirement_13_leaves_with_a_reason(reason):
    neuron = (LEFT | STRANGE)[reason]()
    own = type(neuron)
    with pytest.raises(ValueError if reason in LEFT else TypeError, match=reason) as error:
        unroll(neuron)
    assert str(error.value).startswith("unroll: neuron must be one of Leaky, Synaptic, Lapicque")
    assert type(neuron) is own


def test_requirement_13_refuses_in_the_call():
    ours = unroll(snn.Leaky(beta=0.5, init_hidden=True))
    with pytest.raises(TypeError, match="unroll: mem must not be given with init_hidden=True"):
        ours(torch.rand(3, 2), torch.rand(2))
    with pytest.raises(TypeError, match="unroll: arguments must be input_, mem, got syn"):
        ours(torch.rand(3, 2), syn=torch.rand(2))
    with pytest.raises(TypeError, match="unroll: input_ must be a tensor, got tuple"):
        ours((torch.rand(3, 2), torch.rand(2)))
    ours.inhibition = True
    with pytest.raises(ValueError, match="inhibition=True"):
        ours(torch.rand(3, 2))
    ours = unroll(snn.Leaky(beta=torch.rand(3), init_hidden=True))
    with pytest.raises(ValueError, match=r"beta must be a number .*\(3,\)"):
        ours(torch.rand(5))
    with pytest.raises(ValueError, match=r"beta must be a number or broadcast .*\(4, 2\)"):
        ours(torch.rand(5, 4, 2))


def test_requirement_13_another_version_is_named(monkeypatch):
    monkeypatch.setattr(snn, "__version__", "0.9.4")
    with pytest.raises(ValueError, match=r"snnTorch 1\.0 .* got one of snnTorch 0\.9\.4"):
        unroll(snn.Leaky(beta=0.5))


def test_requirement_13_choices_are_read_at_each_call():
    theirs, ours = pair("Leaky", beta=0.9, init_hidden=True)
    equal(ours(torch.ones(3, 4)), looped(theirs, torch.ones(3, 4)))
    for neuron in (theirs, ours):
        neuron.beta = torch.tensor(0.4)
        neuron.threshold.fill_(0.3)
        neuron.graded_spikes_factor.fill_(2.0)
        neuron.output = True
        neuron.spike_grad = surrogate.fast_sigmoid(slope=3)
    x = inputs("random", 9, 4).requires_grad_()
    wanted, found = looped(theirs, x), ours(x)
    equal(found, wanted)
    close(gradients(found, [x]), gradients(wanted, [x]))


def test_requirement_13_is_the_same_neuron():
    """Keys, parameters, hooks, the list of instances, ``utils.reset``: as they were."""
    neuron = snn.Leaky(beta=0.9, threshold=0.5, learn_beta=True, init_hidden=True)
    keys, parameters = list(neuron.state_dict()), list(neuron.parameters())
    seen = []
    neuron.register_forward_hook(lambda module, args, spikes: seen.append(spikes.shape))
    assert unroll(neuron) is neuron and unroll(neuron) is neuron and isinstance(neuron, snn.Leaky)
    assert list(neuron.state_dict()) == keys
    assert [id(p) for p in neuron.parameters()] == [id(p) for p in parameters]
    assert sum(other is neuron for other in snn.SpikingNeuron.instances) == 1
    assert len(snn.SpikingNeuron.instances) == 1

    net = nn.Sequential(nn.Linear(4, 3), neuron)
    x = inputs("random", 5, 2, 4)
    first = net(x)
    assert seen == [(5, 2, 3)]
    assert not torch.equal(net(x), first)  # which went on
    utils.reset(net)
    assert neuron.mem.shape == (2, 3) and not neuron.mem.any() and neuron.mem.grad_fn is None
    assert torch.equal(net(x), first)


def test_requirement_13_learns_behind_inference_mode():
    theirs, ours = pair("Leaky", beta=0.9, init_hidden=True, output=True)
    x = inputs("random", 9, 4)
    with torch.inference_mode():
        looped(theirs, x), ours(x)
    x.requires_grad_()
    wanted, found = looped(theirs, x), ours(x)
    equal(found, wanted)
    close(gradients(found, [x]), gradients(wanted, [x]))


@pytest.mark.parametrize("shape", [(0, 2, 3), (5, 0, 3), (5, 2, 3, 0)], ids=str)
def test_requirement_13_of_nothing(shape):
    ours = unroll(snn.Leaky(beta=torch.rand(3, 1) if len(shape) == 4 else 0.5))
    other = unroll(snn.Leaky(beta=torch.rand(shape[1:])))
    for neuron in (ours, other):
        spikes, mem = neuron(torch.rand(shape))
        assert spikes.shape == mem.shape == shape


def test_requirement_13_subclass_with_other_defaults():
    theirs, ours = Sooner(), unroll(Sooner())
    assert isinstance(ours, Sooner)
    x = inputs("random", 9, 4)
    equal(ours(x), looped(theirs, x))


def test_requirement_13_changes_sizes_without_a_reset():
    theirs, ours = pair("Synaptic", alpha=0.9, beta=0.5, init_hidden=True)
    for shape in ((7, 4, 3), (7, 2, 3), (7, 2, 3)):
        x = inputs("random", *shape)
        equal(ours(x), looped(theirs, x))


def test_requirement_13_truncated_backpropagation():
    theirs, ours = pair("Leaky", beta=0.9, init_hidden=True, output=True)
    x = inputs("random", 12, 3).requires_grad_()
    wanted, found = [], []
    for part in x.split(4):
        wanted.append(looped(theirs, part))
        found.append(ours(part))
        snn.Leaky.detach_hidden()
    for a, b in zip(found, wanted, strict=True):
        equal(a, b)
        close(gradients(a, [x]), gradients(b, [x]))


def test_requirement_13_copies_and_checkpoints(tmp_path):
    _, ours = pair("Leaky", beta=0.9, threshold=0.7, init_hidden=True, surrogate_disable=True)
    x = inputs("random", 9, 4)
    ours(x)
    copies = copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))
    following = ours(x)
    for other in copies:
        assert type(other) is type(ours) and torch.equal(other(x), following)
    torch.save(ours, tmp_path / "neuron.pt")
    again = torch.load(tmp_path / "neuron.pt", weights_only=False)
    assert torch.equal(again(x), ours(x))

    plain = snn.Leaky(beta=0.1)
    plain.load_state_dict(ours.state_dict())
    other = unroll(snn.Leaky(beta=0.2))
    other.load_state_dict(plain.state_dict())
    assert other.threshold == ours.threshold and other.beta == ours.beta


def test_requirement_13_keeps_no_neuron_alive():
    neuron = unroll(snn.Leaky(beta=torch.rand(3), spike_grad=lambda x: Window.apply(x)))
    neuron(torch.rand(5, 2, 3))
    alive = weakref.ref(neuron), weakref.ref(neuron.spike_grad)
    snn.SpikingNeuron.init()
    del neuron
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


class Wrapper(nn.Module):
    """A loop around one neuron, as users write it."""

    def __init__(self, lif, over_time):
        super().__init__()
        self.lif, self.over_time = lif, over_time

    def forward(self, x):
        spikes = self.lif(x) if self.over_time else torch.stack([self.lif(x_t) for x_t in x])
        self.lif.reset_hidden()
        self.lif.reset_mem()
        return spikes


def test_requirement_13_replaces_a_wrapper_s_loop():
    theirs, ours = pair("Leaky", beta=0.9, init_hidden=True)
    theirs, ours = Wrapper(theirs, False), Wrapper(ours, True)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for _ in range(2):
        x = inputs("random", 9, 4)
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_requirement_13_spikes_have_the_input_s_dtype(dtype):
    _, ours = pair("Leaky", beta=0.9)
    x = inputs("grid", 9, 4, 3).to(dtype)
    spikes, mem = ours(x)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (spikes.dtype, mem.dtype) == (dtype, wide)
    if dtype != torch.float64:
        ours.reset_mem()
        equal(tuple(t.float() for t in (spikes, mem)), ours(x.float()))


@pytest.mark.unpoisoned
def test_requirement_13_under_torch_compile():
    _, ours = pair("Leaky", beta=0.9, init_hidden=True, output=True)
    x = inputs("random", 9, 4)
    wanted = ours(x)
    ours.reset_mem()
    equal(torch.compile(ours, backend="aot_eager")(x), wanted)


def test_requirement_13_runs_on_the_backend_that_is_asked_for():
    _, ours = pair("Leaky", beta=0.9, init_hidden=True)
    rows = snnfast.explain(ours, inputs("random", 9, 4))
    assert [row[:2] for row in rows] == [("leaky", "cpu")]
