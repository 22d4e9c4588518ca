"""Whole networks of snnTorch, layer by layer: ``multi_step(net, x)`` against the loop of net over
x; and what ``accelerate`` is told of snnTorch's neurons."""

import pytest
import torch
from over_time import close, equal, gradients, inputs, looped
from peer_neurons import package
from torch import nn

import snnfast
from snnfast.interop.snntorch import judge, multi_step

snn = package("snntorch")
surrogate, utils = package("snntorch.surrogate"), package("snntorch.utils")


@pytest.fixture(autouse=True)
def none_left():
    yield
    snn.SpikingNeuron.init()


def leaky(beta=0.5, **options):
    grad = surrogate.fast_sigmoid(slope=5)
    return snn.Leaky(beta=beta, threshold=0.4, spike_grad=grad, init_hidden=True, **options)


def dense(*between):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 20), leaky(learn_beta=True), *between, nn.Linear(20, 6),
        snn.Synaptic(alpha=0.9, beta=0.8, init_hidden=True), nn.Linear(6, 4), leaky(output=True),
    )  # fmt: skip


def convolutional():
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), leaky())
    return nn.Sequential(
        stem, nn.MaxPool2d(2), nn.Dropout(0.3),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)), leaky(),
        nn.Flatten(), nn.Linear(32, 5), snn.Lapicque(beta=0.7, init_hidden=True), nn.Linear(5, 4),
    )  # fmt: skip


def recurrent():
    return dense(snn.RLeaky(beta=0.5, linear_features=20, init_hidden=True))


def single():
    return nn.Sequential(snn.Alpha(alpha=0.9, beta=0.8, threshold=0.2))


def masked():
    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Dropout(0.5), nn.Linear(12, 5)), leaky())


NETS = {f.__name__: f for f in (dense, convolutional, recurrent, single, masked)}


def alike(make, data="random"):
    """Two of the same weights, strong enough to fire."""
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(make())
        with torch.no_grad():
            for module in nets[-1].modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    module.weight.mul_(2)
                    if data == "grid":
                        module.weight.mul_(20).round_().div_(20)
                        module.bias.mul_(20).round_().div_(20)
    return nets


def example(name, data, *leading):
    shapes = {"convolutional": (4, 3, 4, 4), "single": (4, 6)}
    return inputs(data, *leading, *shapes.get(name, (4, 3, 4)))


def reset(net) -> None:
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()


def flat(results) -> tuple:
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("data", ["random", "grid"])
@pytest.mark.parametrize("name", NETS)
def test_the_spikes_of_the_loop(name, data, mode):
    """Two calls, a reset, a third: results, states, running statistics and gradients."""
    theirs, ours = (getattr(net, mode)() for net in alike(NETS[name], data))
    for again in (False, False, True):
        if again:
            reset(theirs), reset(ours)
        x = example(name, data, 7).requires_grad_()
        results = []
        for net, run in ((theirs, looped), (ours, multi_step)):
            torch.manual_seed(1)  # of the masks
            results.append(flat(run(net, x)))
        equal(results[1], results[0])
        close(gradients(results[1], [x]), gradients(results[0], [x]))
        equal(tuple(ours.buffers()), tuple(theirs.buffers()))
        for net in (theirs, ours):
            for buffer in net.buffers():
                buffer.detach_()
    assert isinstance(theirs[0], type(ours[0]))
    assert all(type(a) is type(b) for a, b in zip(ours.modules(), theirs.modules(), strict=True))


def test_parameters_learn_as_in_the_loop():
    theirs, ours = alike(dense)
    x = example("dense", "random", 9)
    wanted, found = looped(theirs, x), multi_step(ours, x)
    parameters = [list(net.parameters()) for net in (ours, theirs)]
    close(gradients(found, parameters[0]), gradients(wanted, parameters[1]), 1e-5)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETS)
def test_one_input_at_every_step(name, mode):
    theirs, ours = (getattr(net, mode)() for net in alike(NETS[name]))
    x = example(name, "random")
    results = []
    for net, run in ((theirs, looped), (ours, None)):
        torch.manual_seed(1)
        results.append(flat(run(net, [x] * 7) if run else multi_step(net, x, timesteps=7)))
    equal(results[1], results[0])
    equal(tuple(ours.buffers()), tuple(theirs.buffers()))


def test_layers_in_front_run_once_for_one_input():
    net, calls = dense(), []
    net[1].forward = lambda x, forward=net[1].forward: calls.append(1) or forward(x)
    multi_step(net, example("dense", "random"), timesteps=7)
    assert len(calls) == 1
    multi_step(net, example("dense", "random", 7))
    assert len(calls) == 8


def test_without_a_neuron_nothing_changes():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), example("dense", "random")
    wanted = net(x).expand(5, 4, 3)
    assert torch.equal(multi_step(net, x, timesteps=5), wanted)
    assert torch.equal(multi_step(net, x.expand(5, *x.shape)), wanted)


def test_utils_reset_and_the_loop_go_on_working():
    theirs, ours = alike(dense)
    x = example("dense", "random", 6)
    wanted = looped(theirs, x)
    equal(multi_step(ours, x[:3]), tuple(part[:3] for part in wanted))
    equal(looped(ours, x[3:]), tuple(part[3:] for part in wanted))  # from there on, step by step
    utils.reset(ours)
    equal(multi_step(ours, x), wanted)


def test_hooks_of_a_layer_see_every_step():
    net, seen = dense(), []
    net[1].register_forward_hook(lambda module, args, y: seen.append(y.shape))
    multi_step(net, example("dense", "random"), timesteps=5)
    assert seen == [(4, 20)] * 5


def test_hooks_of_neurons_see_all_timesteps():
    net, seen = dense(), []
    net[2].register_forward_hook(lambda module, args, spikes: seen.append(spikes.shape))
    multi_step(net, example("dense", "random", 5))
    assert seen == [(5, 4, 20)]


def test_runs_in_a_launch_a_neuron():
    net, x = dense(), example("dense", "random", 5)
    names = [row[0] for row in snnfast.explain(multi_step, net, x)]
    assert names == ["leaky", "synaptic", "leaky"]


class Forward(nn.Sequential):
    def forward(self, x):
        return super().forward(x)


def hooked():
    net = dense()
    net.register_forward_hook(lambda *_: None)
    return net


def shared():
    neuron = leaky()
    return nn.Sequential(nn.Flatten(), neuron, nn.Sequential(nn.Linear(12, 12), neuron))


def failing():
    return nn.Sequential(nn.Flatten(), leaky(), nn.Linear(5, 5))


X = torch.rand(5, 4, 3, 4)
BAD = {
    "net must be a Sequential, got Leaky": (leaky, X, {}, TypeError),
    "net must be a Sequential, got Forward": (lambda: Forward(leaky()), X, {}, TypeError),
    "net must have no hooks": (hooked, X, {}, ValueError),
    "stand at one place, got Leaky at net.1 and net.2.1": (shared, X, {}, ValueError),
    "x must be a tensor, got list": (dense, [X], {}, TypeError),
    r"x must be \[T, B, ...\], T >= 1, got \(0, 4\)": (dense, X[:0, :, 0, 0], {}, ValueError),
    "timesteps must be": (dense, X[0], {"timesteps": 0}, ValueError),
}


@pytest.mark.parametrize("message", BAD)
def test_refuses(message):
    make, x, options, kind = BAD[message]
    with pytest.raises(kind, match=message) as error:
        multi_step(make(), x, **options)
    assert str(error.value).startswith("multi_step: ")


def test_an_error_leaves_the_net_as_it_was():
    net = failing()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        multi_step(net, X)
    with pytest.raises(TypeError, match="leaky: x must be"):
        multi_step(nn.Sequential(net[1]), X.long())
    assert type(net[1]) is snn.Leaky


class FromBoth(nn.Module):
    """What reads the spikes and the state of one step."""

    def forward(self, outputs):
        spikes, mem = outputs
        return spikes + mem.mean(0)


def test_a_layer_reads_the_states_of_an_output():
    net = nn.Sequential(nn.Flatten(), leaky(output=True), FromBoth(), leaky())
    utils.reset(net)
    wanted = torch.stack([net(x) for x in X])
    utils.reset(net)
    assert torch.equal(multi_step(net, X), wanted)
    with pytest.raises(TypeError, match="unroll: input_ must be a tensor, got tuple"):
        multi_step(nn.Sequential(leaky(output=True), leaky()), X)


def test_judges_its_neurons_alone():
    assert judge(nn.Linear(2, 2)) is None and judge(snnfast.nn.Leaky()) is None
    reasons = {
        "snnfast.nn.unroll makes it take all": leaky(),
        "unrolled already": snnfast.nn.unroll(leaky()),
        "RLeaky, whose recurrent connection": snn.RLeaky(beta=0.5, linear_features=3),
        "RSynaptic, whose": snn.RSynaptic(alpha=0.9, beta=0.5, linear_features=3),
        "SLSTM, of which snnfast.neurons has no like": snn.SLSTM(3, 3),
        "spike_grad=SSO, which has a gradient that is drawn": (
            snn.Leaky(beta=0.5, spike_grad=surrogate.SSO())
        ),
    }
    for reason, neuron in reasons.items():
        verdict = judge(neuron)
        assert verdict.kind == "left" and verdict.cls is None
        assert reason in verdict.reason and not verdict.reason.startswith("got ")
