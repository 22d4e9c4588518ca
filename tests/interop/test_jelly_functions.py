"""``functional``, encoders and monitors of the compatible namespaces against their releases."""

import copy

import jelly_pairs as pairs
import pytest
import torch
from live import live
from torch import nn

from snnfast.interop.spikingjelly import activation_based as ab
from snnfast.interop.spikingjelly import clock_driven as cd

V12, V14 = pairs.VERSIONS
BOTH = [(V12, cd), (V14, ab)]


@pytest.mark.parametrize(("version", "package"), BOTH)
def test_functions_that_pass_timesteps_on(version, package):
    theirs, ours, x = live(version).functional, package.functional, torch.randn(4, 3, 5)
    linear = nn.Linear(5, 2)
    modules = [linear, [linear, nn.ReLU()], nn.Sequential(linear, nn.Tanh())]
    for module in modules:
        for name in ("multi_step_forward", "seq_to_ann_forward"):
            wanted = getattr(theirs, name)(x, module)
            assert torch.equal(getattr(ours, name)(x, module), wanted)
    assert torch.equal(ours.seq_to_ann_forward(x, torch.tanh), torch.tanh(x))


@pytest.mark.parametrize(("version", "package"), BOTH)
def test_losses(version, package):
    theirs, ours = live(version).functional, package.functional
    x = torch.randn(4, 3, 5, requires_grad=True)
    dense = torch.randn(4, 3, 5, 2, 2)
    target, map_ = torch.tensor([0, 4, 2]), torch.randint(5, (3, 2, 2))
    name = "temporal_efficient_training_cross_entropy"
    mine, wanted = getattr(ours, name)(x, target), getattr(theirs, name)(x, target)
    torch.testing.assert_close(mine, wanted)
    torch.testing.assert_close(torch.autograd.grad(mine, x), torch.autograd.grad(wanted, x))
    every = map_[:, :1, :1].expand(3, 2, 2)
    one = getattr(theirs, name)(dense.flatten(3).mean(-1), target)
    assert one.isfinite() and getattr(ours, name)(dense, every).isfinite()
    spikes = (torch.rand(6, 4, 3) > 0.5).float()
    labels = nn.functional.one_hot(torch.randint(3, (6,)), 3)
    kernels = [("linear",), ("sigmoid", 0.3), ("gaussian", 2.0), ("polynomial", 2)]
    for kernel, *numbers in kernels:
        for loss in ("mse", "l1"):
            arguments = (spikes, labels, kernel, loss, *numbers)
            torch.testing.assert_close(
                ours.spike_similar_loss(*arguments), theirs.spike_similar_loss(*arguments)
            )
    with pytest.raises(ValueError, match="loss_type must be one of mse, l1, bce, got 'x'"):
        ours.spike_similar_loss(spikes, labels, "linear", "x")
    with pytest.raises(ValueError, match=r"kernel must be one of linear, .* got 'x'"):
        ours.kernel_dot_product(spikes[0], spikes[0], "x")


@pytest.mark.parametrize(("version", "package"), BOTH)
def test_small_functions(version, package):
    theirs, ours = live(version).functional, package.functional
    labels = torch.tensor([0, 2, 1])
    assert torch.equal(ours.redundant_one_hot(labels, 3, 4), theirs.redundant_one_hot(labels, 3, 4))
    spikes = (torch.rand(5, 8) > 0.6).float()
    assert torch.equal(ours.first_spike_index(spikes), theirs.first_spike_index(spikes))
    one_hot = nn.functional.one_hot(labels, 3)
    for training in (True, False):
        nodes = [p.neuron.IFNode().train(training) for p in (live(version), package)]
        theirs.set_threshold_margin(nodes[0], one_hot)
        ours.set_threshold_margin(nodes[1], one_hot)
        x = torch.full((3, 3), 1.0)
        assert torch.equal(nodes[1](x), nodes[0](x))
    conv, norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3).eval()
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.data.uniform_(0, 1)
    x = torch.randn(2, 2, 5, 5)
    fused = ours.fuse_convbn2d(conv, norm)
    assert torch.equal(fused(x), theirs.fuse_convbn2d(conv, norm)(x))
    pair = copy.deepcopy((conv, norm))
    for functions, (c, n) in ((ours, (conv, norm)), (theirs, pair)):
        functions.scale_fused_conv2d_weight_of_convbn2d(c, n, 2.0, 0.1)
        functions.scale_fused_conv2d_bias_of_convbn2d(c, n, 2.0, 0.1)
    assert torch.equal(norm(conv(x)), pair[1](pair[0](x)))
    with pytest.raises(ValueError, match="bias of the convolution must be None"):
        ours.fuse_convbn2d(nn.Conv2d(2, 3, 3), norm)
    nets = [nn.Sequential(nn.Linear(3, 3), nn.Conv1d(2, 2, 1)) for _ in range(2)]
    for functions, net in zip((ours, theirs), nets):
        torch.manual_seed(3)
        functions.kaiming_normal_conv_linear_weight(net)
    assert torch.equal(nets[0][1].weight, nets[1][1].weight)


def _deep(package):
    layer, neuron = package.layer, package.neuron
    return nn.Sequential(
        layer.Linear(3, 3),
        neuron.LIFNode(),
        layer.StepModeContainer(True, nn.Linear(3, 3), neuron.LIFNode()),
        layer.ElementWiseRecurrentContainer(neuron.IFNode(), torch.add),
        layer.LinearRecurrentContainer(neuron.IFNode(), 3, 3),
        layer.SeqToANNContainer(nn.Linear(3, 3)),
    )


def test_set_step_mode_leaves_what_is_called_once_a_timestep():
    theirs, ours = _deep(live(V14)), _deep(ab)
    ours.load_state_dict(theirs.state_dict())
    for package, net in ((live(V14), theirs), (ab, ours)):
        package.functional.set_step_mode(net, "m")
        assert [getattr(m, "step_mode", None) for m in net] == ["m"] * 5 + [None]
    assert ours[2][1].step_mode == ours[3].sub_module.step_mode == "s"
    x = torch.randn(4, 2, 3)
    assert torch.equal(ours(x), theirs(x))
    live(V14).functional.reset_net(ours)  # anybody's loop over `reset`
    ab.functional.reset_net(theirs)
    assert type(ours[1].v) is type(theirs[1].v) is float
    with pytest.raises(ValueError, match="step_mode must be one of s, m, got 'x'"):
        ab.functional.set_step_mode(ours, "x")


def test_detach_and_chunks():
    net = nn.Sequential(ab.layer.Linear(3, 3), ab.neuron.LIFNode(step_mode="m"))
    x = torch.randn(6, 2, 3)
    whole = net(x)
    assert net[1].v.requires_grad
    ab.functional.detach_net(net)
    assert not net[1].v.requires_grad
    ab.functional.reset_net(net)
    assert torch.equal(ab.functional.chunk_multi_step_forward(4, x, net), whole)
    for steps in (0, 2, 6):
        wanted = live(V14).functional.delay(x, steps)
        assert torch.equal(ab.functional.delay(x, steps), wanted)
    assert not ab.functional.delay(x, 9).any()


@pytest.mark.parametrize(("version", "package"), BOTH)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("LatencyEncoder", (6,)),
        ("LatencyEncoder", (6, "log")),
        ("WeightedPhaseEncoder", (5,)),
        ("PoissonEncoder", ()),
    ],
)
def test_encoders(version, package, name, arguments):
    theirs = getattr(live(version).encoding, name)(*arguments)
    ours = getattr(package.encoding, name)(*arguments)
    for seed in range(2):
        torch.manual_seed(seed)
        x = torch.rand(3, 4) * 0.9
        for step in range(7):
            torch.manual_seed(step)
            mine = ours(x)
            torch.manual_seed(step)
            assert torch.equal(mine, theirs(x))
        for encoder in (theirs, ours):
            package.functional.reset_net(encoder)


def test_encoders_of_ones_own_and_what_they_refuse():
    spike = torch.eye(3)
    for package in (cd, ab):
        periodic = package.encoding.PeriodicEncoder(spike)
        for _ in range(2):
            assert torch.equal(torch.stack([periodic() for _ in range(5)]), spike[[0, 1, 2, 0, 1]])
            periodic.reset()
        with pytest.raises(ValueError, match="LatencyEncoder: T must be an int >= 1, got 0"):
            package.encoding.LatencyEncoder(0)
        with pytest.raises(ValueError, match="enc_function must be 'linear' or 'log', got 'x'"):
            package.encoding.LatencyEncoder(4, "x")
        with pytest.raises(ValueError, match=r"WeightedPhaseEncoder: x must be in \[0, 0.75\]"):
            package.encoding.WeightedPhaseEncoder(2)(torch.ones(3))

    class Old(cd.encoding.StatefulEncoder):
        def encode(self, x):
            self.spike = torch.stack([x, -x])

    class New(ab.encoding.StatefulEncoder):
        def single_step_encode(self, x):
            self.spike = torch.stack([x, -x])

    for encoder in (Old(2), New(2)):
        assert [encoder(torch.tensor(3)).item() for _ in range(3)] == [3, -3, 3]


def _watched(package):
    layer, neuron = package.layer, package.neuron
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(5, 6), neuron.LIFNode(), layer.Linear(6, 4), neuron.IFNode())
    package.functional.set_step_mode(net, "m")
    return net


def test_monitors_of_the_newer_namespace():
    found = {}
    for key, package in (("theirs", live(V14)), ("ours", ab)):
        net, monitor = _watched(package), package.monitor
        node = package.neuron.BaseNode
        watching = [
            monitor.OutputMonitor(net, node, torch.Tensor.detach),
            monitor.InputMonitor(net, node),
            monitor.AttributeMonitor("v", False, net, node),
            monitor.GradInputMonitor(net, node),
            monitor.GradOutputMonitor(net, node),
        ]
        x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
        net(x).sum().backward()
        watching[0].disable()
        net(x)
        found[key] = watching
    for theirs, ours in zip(found["theirs"], found["ours"]):
        assert ours.monitored_layers == theirs.monitored_layers == ["1", "3"]
        assert len(ours.records) == len(theirs.records) > 0
        assert ours.name_records_index == theirs.name_records_index
        for name in ("1", "3"):
            torch.testing.assert_close(ours[name], theirs[name])
        assert torch.equal(ours[0], ours.records[0])
        ours.clear_recorded_data()
        assert not ours.records and not ours["1"]
        ours.remove_hooks()
    assert not found["ours"][0].is_enable()
    before = ab.monitor.AttributeMonitor("v", True, net, ab.neuron.LIFNode)
    ab.functional.reset_net(net)
    net(x)
    assert before["1"] == [0.0]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_the_monitor_of_the_older_namespace(backend):
    x, rates = torch.randn(4, 3, 5), []
    for package in (live(V12), cd):
        net = nn.Sequential(package.neuron.MultiStepLIFNode(), package.neuron.MultiStepIFNode())
        monitor = package.monitor.Monitor(net, torch.device("cpu"), backend)
        monitor.enable()
        net(x), net(x)
        rates.append(
            [
                float(ask(*about))
                for ask in (monitor.get_avg_firing_rate, monitor.get_nonfire_ratio)
                for about in ((), (False, "1"))
            ]
        )
        monitor.disable()
        net(x)
        assert not hasattr(net[0], "fire_mask")
    assert rates[1] == pytest.approx(rates[0])
    with pytest.raises(ValueError, match="Monitor: module_name must be one of 0, 1, got '7'"):
        monitor.get_avg_firing_rate(False, "7")
    with pytest.raises(ValueError, match="Monitor: backend must be numpy or torch, got 'x'"):
        cd.monitor.Monitor(net, None, "x")


def test_cext_takes_a_surrogate_by_name():
    from snnfast.interop.spikingjelly.cext import neuron

    x = pairs.inputs("grid")
    node = neuron.MultiStepLIFNode(3.0, False, 0.5, 0.0, "Sigmoid", 3.0, True)
    other = cd.neuron.MultiStepLIFNode(3.0, True, 0.5, 0.0, cd.surrogate.Sigmoid(3.0), True)
    assert torch.equal(node(x), other(x)) and isinstance(node, cd.neuron.BaseNode)
    assert isinstance(neuron.MultiStepIFNode(detach_reset=True), neuron.IFNode)
    learned = neuron.MultiStepParametricLIFNode(init_tau=2.0, detach_reset=True)
    assert learned.surrogate_function.alpha == 2.0 and list(learned.state_dict()) == ["w"]
    assert neuron.LIFNode().tau == 100.0
    with pytest.raises(ValueError, match="IFNode: surrogate_function must be one of ATan, Sigmoid"):
        neuron.IFNode(surrogate_function="Erf")


def test_the_path_that_the_decorator_names():
    import snnfast
    from snnfast.interop.spikingjelly import neuron

    with pytest.raises(AttributeError, match=r"snnfast.interop.spikingjelly.neuron.LIFNode"):
        snnfast.neuron.LIFNode  # noqa: B018
    assert neuron.LIFNode is ab.neuron.LIFNode
    assert neuron.MultiStepLIFNode is cd.neuron.MultiStepLIFNode
