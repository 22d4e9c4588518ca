"""Layers, surrogates, functions, encoders and monitors of the compatible namespaces against the
releases that they stand for."""

import copy
import inspect
import pickle

import jelly_pairs as pairs
import pytest
import torch
from live import live
from torch import nn

import snnfast
from snnfast.interop.spikingjelly import activation_based as ab
from snnfast.interop.spikingjelly import clock_driven as cd

V12, V14 = pairs.VERSIONS
STEP_MODES = {
    "Conv1d": ((2, 3, 3), (4, 2, 2, 8)),
    "Conv2d": ((2, 3, 3, 1, 1), (4, 2, 2, 6, 6)),
    "Conv3d": ((2, 3, 2), (4, 2, 2, 4, 4, 4)),
    "ConvTranspose1d": ((2, 3, 3), (4, 2, 2, 8)),
    "ConvTranspose2d": ((2, 3, 3), (4, 2, 2, 6, 6)),
    "ConvTranspose3d": ((2, 3, 2), (4, 2, 2, 4, 4, 4)),
    "BatchNorm1d": ((2,), (4, 2, 2, 8)),
    "BatchNorm2d": ((2, 1e-4, 0.2), (4, 2, 2, 6, 6)),
    "BatchNorm3d": ((2,), (4, 2, 2, 4, 4, 4)),
    "GroupNorm": ((1, 2), (4, 2, 2, 6)),
    "Linear": ((6, 3, False), (4, 2, 2, 6)),
    "Flatten": ((1, -1), (4, 2, 2, 6)),
    "MaxPool1d": ((2, 1, 1), (4, 2, 2, 8)),
    "MaxPool2d": ((2,), (4, 2, 2, 6, 6)),
    "MaxPool3d": ((2,), (4, 2, 2, 4, 4, 4)),
    "AvgPool1d": ((2,), (4, 2, 2, 8)),
    "AvgPool2d": ((2, 1, 1, True, False, 3), (4, 2, 2, 6, 6)),
    "AvgPool3d": ((2,), (4, 2, 2, 4, 4, 4)),
    "AdaptiveAvgPool1d": ((2,), (4, 2, 2, 8)),
    "AdaptiveAvgPool2d": (((1, 1),), (4, 2, 2, 6, 6)),
    "AdaptiveAvgPool3d": ((1,), (4, 2, 2, 4, 4, 4)),
}


def _same(theirs, ours, *inputs):
    """Equal results, also of a copy and of what was pickled, and the same keys."""
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        wanted = copy.deepcopy(theirs)
        for x in inputs:
            torch.manual_seed(1)
            mine = module(x)
            torch.manual_seed(1)
            assert torch.equal(mine, wanted(x))


@pytest.mark.parametrize("name", STEP_MODES)
def test_layers_with_step_modes(name):
    arguments, shape = STEP_MODES[name]
    x = torch.randn(shape)
    ours, theirs = getattr(ab.layer, name), getattr(live(V14).layer, name)
    assert ours.__name__ == name and issubclass(ours, (getattr(nn, name), ab.base.StepModule))
    for mode, inputs in (("s", x[0]), ("m", x)):
        _same(
            theirs(*arguments, step_mode=mode), ours(*arguments, step_mode=mode), inputs, inputs * 2
        )
    full = inspect.signature(theirs).parameters
    if len(arguments) == len(full) - 1:  # theirs takes the mode by position behind all others
        assert ours(*arguments, "m").step_mode == "m"
    with pytest.raises(ValueError, match=f"{name}: step_mode must be one of s, m, got 'x'"):
        ours(*arguments, step_mode="x")


def test_a_step_too_few_is_named():
    layer = ab.layer.Conv2d(2, 3, 3, step_mode="m")
    with pytest.raises(ValueError, match=r"Conv2d: x must have 5 axes, .* got \[2, 2, 6, 6\]"):
        layer(torch.zeros(2, 2, 6, 6))
    norm = ab.layer.BatchNorm1d(2, step_mode="m")  # which .14 has not, and users asked for
    y = norm(torch.randn(4, 3, 2))
    assert y.shape == (4, 3, 2) and abs(y.mean()) < 1e-6
    with pytest.raises(ValueError, match="BatchNorm1d: x must have 3 or 4 axes"):
        norm(torch.zeros(2, 2))


WITH_MEMORY = {
    "Dropout": ((0.4,), {}),
    "Dropout2d": ((0.4,), {}),
    "SynapseFilter": ((3.0, True), {}),
    "NeuNorm": ((2, 6, 6), {}),
}


@pytest.mark.parametrize("name", WITH_MEMORY)
@pytest.mark.parametrize("training", [True, False])
def test_layers_with_a_memory(name, training):
    arguments, _ = WITH_MEMORY[name]
    x = (torch.rand(4, 3, 2, 6, 6) > 0.5).float()
    for version, layers, modes in ((V12, cd.layer, ("s",)), (V14, ab.layer, ("s", "m"))):
        for mode in modes:
            with_mode = {} if version == V12 else {"step_mode": mode}
            made = [
                getattr(package, name)(*arguments, **with_mode).train(training)
                for package in (live(version).layer, layers)
            ]
            _same(*made, *([x] if mode == "m" else x[:2]))
            for layer in made:
                torch.manual_seed(2)
                layer.reset()
                layer(x if mode == "m" else x[0])
            for (key, mine), (_, other) in zip(made[1].named_memories(), made[0].named_memories()):
                assert mine is other is None or torch.equal(mine, other), key


@pytest.mark.parametrize("name", ["MultiStepDropout", "MultiStepDropout2d"])
def test_dropout_over_all_timesteps_has_one_mask(name):
    x = torch.ones(4, 3, 2, 6, 6)
    ours = getattr(cd.layer, name)()
    _same(getattr(live(V12).layer, name)(), ours, x)
    first = ours(x)
    assert torch.equal(first[0], first[3]) and torch.equal(first, ours(x))
    ours.reset()
    assert not torch.equal(first, ours(x))
    assert torch.equal(ours.eval()(x), x)


def test_containers():
    x = torch.rand(4, 3, 2, 6, 6)
    for version, layers in ((V12, cd.layer), (V14, ab.layer)):
        for name in ("SeqToANNContainer", "MultiStepContainer"):
            content = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
            theirs = getattr(live(version).layer, name)(*copy.deepcopy(content))
            _same(theirs, getattr(layers, name)(*content), x)
            assert isinstance(getattr(layers, name)(), nn.Sequential)
    for stateful in (True, False):
        made = []
        for package in (live(V14).layer, ab.layer):
            made.append(package.StepModeContainer(stateful, nn.BatchNorm2d(2)))
            made[-1].step_mode = "m"
        _same(*made, x)
    with pytest.raises(ValueError, match="SeqToANNContainer: modules inside must have step_mode"):
        ab.layer.SeqToANNContainer(ab.layer.Linear(2, 2, step_mode="m"))


def test_recurrent_containers():
    x = torch.rand(4, 3, 5)

    def made(package, name, node):
        if name == "LinearRecurrentContainer":
            return package.LinearRecurrentContainer(node, 5, 5)
        return package.ElementWiseRecurrentContainer(node, torch.add)

    for version, package in ((V12, cd), (V14, ab)):
        for name in ("LinearRecurrentContainer", "ElementWiseRecurrentContainer"):
            theirs = made(live(version).layer, name, live(version).neuron.LIFNode())
            _same(theirs, made(package.layer, name, package.neuron.LIFNode()), *x)
            with pytest.raises(ValueError, match=f"{name}: modules inside must have step_mode 's'"):
                made(package.layer, name, ab.neuron.LIFNode(step_mode="m"))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_threshold_dependent_norm(dims):
    x = torch.randn(4, 3, 2, *[4] * dims)
    name = f"ThresholdDependentBatchNorm{dims}d"
    theirs = getattr(live(V12).layer, f"MultiStep{name}")(0.5, 0.8, 2)
    for layers, full in ((cd.layer, f"MultiStep{name}"), (ab.layer, name)):
        ours = getattr(layers, full)(0.5, 0.8, 2)
        assert torch.equal(ours.weight, torch.full((2,), 0.4))
        _same(theirs, ours, x)
    with pytest.raises(ValueError, match=f"{name}: affine must be True, got False"):
        getattr(ab.layer, name)(1.0, 1.0, 2, affine=False)


def test_attention_over_time():
    for dimension, shape in ((2, (4, 3, 7)), (4, (4, 3, 2, 5, 5))):
        theirs = live(V12).layer.MultiStepTemporalWiseAttention(4, 2, dimension)
        ours = cd.layer.MultiStepTemporalWiseAttention(4, 2, dimension)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x), theirs(x))


def test_voting_delay_and_pooling_of_channels():
    x = torch.randn(4, 3, 20)
    for mode, inputs in (("s", [x[0]]), ("m", [x])):
        _same(live(V14).layer.VotingLayer(5, mode), ab.layer.VotingLayer(5, mode), *inputs)
    theirs, ours = live(V14).layer.Delay(2), ab.layer.Delay(2)
    assert all(torch.equal(ours(x_t), theirs(x_t)) for x_t in x)
    assert torch.equal(ab.layer.Delay(2, "m")(x), torch.cat([torch.zeros(2, 3, 20), x[:2]]))
    image = torch.randn(2, 6, 3, 3)
    _same(live(V12).layer.ChannelsPool(nn.AvgPool1d(2, 2)),
          cd.layer.ChannelsPool(nn.AvgPool1d(2, 2)), image)  # fmt: skip


SURROGATES = [
    "PiecewiseQuadratic", "PiecewiseExp", "Sigmoid", "SoftSign", "ATan", "NonzeroSignLogAbs",
    "Erf", "PiecewiseLeakyReLU", "SquarewaveFourierSeries", "S2NN", "QPseudoSpike", "LeakyKReLU",
    "FakeNumericalGradient", "LogTailedReLU",
]  # fmt: skip
NO_PRIMITIVE = ("FakeNumericalGradient",)
NO_BACKWARD = ("NonzeroSignLogAbs",)  # theirs raises


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name):
    theirs, ours = getattr(live(V14).surrogate, name)(), getattr(ab.surrogate, name)()
    assert getattr(cd.surrogate, name) is type(ours)
    x = torch.linspace(-3, 3, 121)[torch.arange(121) != 60]
    found = []
    for module in (theirs, ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        u = x.clone().requires_grad_()
        s = module(u)
        if name not in NO_BACKWARD or module is not theirs:
            found.append(torch.autograd.grad(s.sum(), u)[0])
        assert torch.equal(s, (x >= 0).float())
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0], rtol=1e-5, atol=1e-6)
    if name not in NO_PRIMITIVE:
        theirs.set_spiking_mode(False), ours.set_spiking_mode(False)
        assert ours.spiking is False
        defined = ~theirs(x).isnan()
        torch.testing.assert_close(ours(x)[defined], theirs(x)[defined], rtol=1e-4, atol=2e-5)
        assert not ours(x).isnan().any()
    numbers = [n for n in ("alpha", "beta", "leak", "k", "w", "c", "n") if hasattr(theirs, n)]
    assert numbers and all(getattr(ours, n) == getattr(theirs, n) for n in numbers)


def test_surrogates_by_function_and_position():
    x = torch.linspace(-2, 2, 41, requires_grad=True)
    wanted = snnfast.surrogate.Sigmoid(alpha=3.0).gradient(x.detach())
    for alpha in (3.0, torch.tensor(3.0)):
        s = ab.surrogate.sigmoid.apply(x, alpha)
        torch.testing.assert_close(torch.autograd.grad(s.sum(), x)[0], wanted)
    assert torch.equal(s, ab.surrogate.heaviside(x.detach()))
    assert ab.surrogate.ATan(3.0, False).spiking is False
    leaky = ab.surrogate.LeakyKReLU(True, 0.1, 2.0)
    assert (leaky.leak, leaky.k, leaky.spiking) == (0.1, 2.0, True)
    both = ab.surrogate.S2NN(2.0, 0.5, False)
    assert (both.alpha, both.beta, both.spiking) == (2.0, 0.5, False)
    with pytest.raises(
        TypeError, match="S2NN: arguments must be among alpha, beta, spiking, got x"
    ):
        ab.surrogate.S2NN(x=1)


def test_a_surrogate_of_ones_own_as_published_ones_are():
    class Window(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, alpha):
            ctx.save_for_backward(x)
            ctx.alpha = alpha
            return (x >= 0).to(x)

        @staticmethod
        def backward(ctx, grad):
            return grad * (ctx.saved_tensors[0].abs() <= ctx.alpha / 2), None

    def made(package):
        class Rectangle(package.surrogate.SurrogateFunctionBase):
            def __init__(self, alpha=1.0, spiking=True):
                super().__init__(alpha, spiking)

            @staticmethod
            def spiking_function(x, alpha):
                return Window.apply(x, alpha)

        return package.neuron.MultiStepLIFNode(surrogate_function=Rectangle(0.7))

    x = pairs.inputs("grid")
    s, v, mine = pairs.run(made(cd), x)
    wanted, v_wanted, theirs = pairs.run(made(live(V12)), x)
    assert torch.equal(s, wanted) and torch.equal(v, v_wanted)
    torch.testing.assert_close(mine, theirs)
