"""What ``snnfast.monitor`` says of a model, held to what plain PyTorch computes of its outputs."""

import gc
import weakref

import pytest
import torch
from torch import nn

import snnfast
from snnfast.monitoring import Monitor

T, B = 5, 6


class Net(nn.Module):
    def __init__(self, **neuron):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = snnfast.nn.BatchNormLIF(4, surrogate="atan")
        self.fc = nn.Linear(4 * 36, 7)
        self.out = snnfast.nn.LIF(surrogate="atan", **neuron)

    def forward(self, x):
        y = self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        self.s1 = self.bn(y)
        self.s2 = self.out(self.fc(self.s1.flatten(2)))
        return self.s2


def data(seed, batch=B):
    return 3 * torch.randn(T, batch, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_rates_and_shares_are_those_of_the_spikes(net):
    with snnfast.monitor(net) as m:
        seen = [(net(data(n)), net.s1)[::-1] for n in range(3)]
    assert isinstance(m, Monitor) and list(m.layers) == ["bn.neuron", "out"]
    for record, spikes in zip(m.layers.values(), zip(*seen)):
        spikes = torch.cat(spikes, 1).double()
        assert record.calls == 3
        torch.testing.assert_close(record.rate, spikes.flatten(1).mean(1))
        assert record.mean_rate == pytest.approx(spikes.mean().item())
        fired = spikes.mean((0, 1))
        assert record.dead == (fired == 0).double().mean()
        assert record.saturated == (fired == 1).double().mean()


def test_scalars_and_clear(net):
    with snnfast.monitor(net, every=1) as m:
        net(data(0)), m.clear()
        assert m.scalars() == {}
        s = net(data(1))
        s.backward(torch.arange(float(s.numel())).view_as(s))
    found = m.scalars()
    assert found["rate/out"] == pytest.approx(s.double().mean().item()) and len(found) == 14
    gradient = torch.arange(float(s.numel()), dtype=torch.float64)
    assert found["gradient_mean/out"] == pytest.approx(gradient.mean().item())
    assert found["gradient_std/out"] == pytest.approx(gradient.std(correction=0).item())


def test_a_dead_and_a_saturated_neuron():
    lif = snnfast.nn.LIF()
    x = torch.zeros(T, B, 4)
    x[..., 0], x[0, :, 1] = 9.0, 9.0
    with snnfast.monitor(lif) as m:
        lif(x)
    record = m.layers[""]
    assert (record.dead, record.saturated) == (0.5, 0.25)
    assert record.rate.tolist() == [0.5, *[0.25] * (T - 1)]


def test_potentials_and_gradients_of_the_sampled_calls(net):
    calls = []
    with snnfast.monitor(net, every=2) as m:
        for n in range(4):
            s = net(data(n))
            gradient = torch.randn(s.shape)
            s.backward(gradient)
            calls.append((net.s1.detach(), gradient))
    sampled = torch.cat([calls[n][1] for n in (0, 2)], 1).double()
    out = m.layers["out"].gradient
    torch.testing.assert_close(out.mean, sampled.flatten(1).mean(1))
    torch.testing.assert_close(out.std, sampled.flatten(1).std(1, correction=0))
    potentials = torch.cat(
        [snnfast.lif(net.fc(calls[n][0].flatten(2)), return_state="all")[1] for n in (0, 2)], 1
    ).double()
    torch.testing.assert_close(m.layers["out"].v.mean, potentials.flatten(1).mean(1))
    torch.testing.assert_close(m.layers["out"].v.std, potentials.flatten(1).std(1, correction=0))
    assert m.layers["bn.neuron"].gradient.mean.shape == (T,)


@pytest.mark.parametrize("keep", [None, "v", ["spikes", "v"]])
@pytest.mark.parametrize("return_state", [False, True, "all"])
def test_the_model_does_what_it_does_without(keep, return_state):
    torch.manual_seed(0)
    neuron = snnfast.nn.LIF(return_state=return_state)
    x = torch.randn(T, B, 3, requires_grad=True)
    plain = neuron(x)
    with snnfast.monitor(neuron, keep=keep):
        watched = neuron(x)
    for a, b in zip(*(r if return_state else (r,) for r in (plain, watched))):
        assert torch.equal(a, b)
    total = [sum(t.sum() for t in (r if return_state else (r,))) for r in (plain, watched)]
    (a,), (b,) = (torch.autograd.grad(t, x) for t in total)
    assert torch.equal(a, b)
    assert torch.equal(
        neuron(x)[0] if return_state else neuron(x), plain[0] if return_state else plain
    )
    assert neuron._watch is None


def test_a_stream_goes_on(net):
    x = data(0)
    with torch.no_grad():
        whole = net.eval()(x)
        with snnfast.monitor(net, every=1) as m, snnfast.streaming(net):
            parts = torch.cat([net(part) for part in x.split(2)])
    assert torch.equal(whole, parts)
    assert m.layers["out"].calls == 3 and m.layers["out"].rate.shape == (2,)


def test_what_is_kept(net):
    with snnfast.monitor(net, layers=["out"], keep=["spikes", "v"]) as m:
        net(data(0)), net(data(1))
    record = m.layers["out"]
    assert torch.equal(record.kept_spikes(), net.s2)
    assert (
        record.spikes[0][0].dtype == torch.uint8
        and record.spikes[0][0].numel() <= net.s2.numel() // 8 + 8
    )
    v = snnfast.lif(net.fc(net.s1.flatten(2)), return_state="all")[1]
    assert torch.equal(record.potential, v) and not record.potential.requires_grad


def test_no_activation_stays_alive(net):
    with snnfast.monitor(net, every=1) as m:
        alive = [weakref.ref(s) for s in (net(data(0)), net.s1)]
        net.s2.sum().backward()
        net.s1 = net.s2 = None
        gc.collect()
        assert [ref() for ref in alive] == [None, None]
    assert m.layers["out"].gradient.mean is not None


def test_fused_pairs_and_checkpoints_are_seen_once(net):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.lif = snnfast.nn.LIF(surrogate="atan")

        def forward(self, x):
            return self.lif(self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2]))

    block = snnfast.nn.fuse(Plain())
    assert type(block) is not Plain
    snnfast.nn.checkpoint_spikes(block)
    with snnfast.monitor(block, every=1) as m:
        s = block(data(0).requires_grad_())
        s.sum().backward()
    record = m.layers["lif"]
    assert record.calls == 1 and record.mean_rate == pytest.approx(s.double().mean().item())


def test_any_neuron_of_the_family():
    neuron = snnfast.nn.TernaryLIF()
    x = 3 * torch.randn(T, B, 4)
    with snnfast.monitor(neuron, every=1, keep="v") as m:
        s = neuron(x)
    assert m.layers[""].mean_rate == pytest.approx(s.abs().double().mean().item())
    assert m.layers[""].potential.shape == x.shape


@pytest.mark.parametrize("accelerated", [False, True])
def test_spikingjelly(accelerated):
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
    node = neurons.LIFNode(step_mode="m", store_v_seq=True)
    net = nn.Sequential(nn.Linear(3, 4), node)
    if accelerated:
        snnfast.accelerate(net)
    with snnfast.monitor(net, every=1) as m:
        s = net(5 * torch.randn(T, B, 3))
    record = m.layers["1"]
    assert record.mean_rate == pytest.approx(s.double().mean().item())
    torch.testing.assert_close(record.v.mean, node.v_seq.double().flatten(1).mean(1))


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_potential_of_the_last_timestep_alone_is_called_that(accelerated):
    """As SpikingJelly's neurons hold it without store_v_seq."""
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
    net = nn.Sequential(nn.Linear(3, 4), neurons.LIFNode(step_mode="m"), snnfast.nn.LIF())
    if accelerated:
        snnfast.accelerate(net)
    with snnfast.monitor(net, every=1, keep="v") as m:
        net(5 * torch.randn(T, B, 3))
    found, v = m.scalars(), net[1].v.double()
    assert "v_mean/1" not in found and "v_std/1" not in found and "v_mean/2" in found
    assert found["v_last_mean/1"] == pytest.approx(v.mean().item())
    assert found["v_last_std/1"] == pytest.approx(v.std(correction=0).item())
    _, theirs, ours = m.table().splitlines()
    assert "(last step)" in theirs and "last" not in ours
    assert m.layers["1"].v.mean[:-1].isnan().all()
    with pytest.raises(ValueError, match=r"potential: layer '1' must store .* store_v_seq=True"):
        m.potential("1", 0)
    with snnfast.monitor(net, every=1) as m:  # where the last timestep is the only one
        net(torch.randn(1, B, 3))
    assert "v_mean/1" in m.scalars() and "last" not in m.table()


def test_snntorch():
    snn = pytest.importorskip("snntorch")
    net = nn.Sequential(nn.Linear(3, 4), snn.Leaky(beta=0.9, init_hidden=True))
    x = 5 * torch.randn(T, B, 3)
    with snnfast.monitor(net, every=1) as m:
        s = torch.stack([net(step) for step in x])
    assert m.layers["1"].calls == T
    assert m.layers["1"].mean_rate == pytest.approx(s.double().mean().item())


@pytest.mark.parametrize("package", ["spikingjelly", "snntorch"])
def test_a_loop_over_time_within_the_model(package):
    """One timestep a call: the calls of a forward are its timesteps."""
    if package == "snntorch":
        neuron = pytest.importorskip("snntorch").Leaky(beta=0.9, init_hidden=True)
        potential = "mem"
    else:
        neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
        neuron, potential = neurons.LIFNode(tau=2.0), "v"

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.neuron = nn.Linear(3, 4), neuron

        def forward(self, x):
            neuron.reset_mem() if package == "snntorch" else neuron.reset()
            out = [(self.neuron(self.fc(step)), getattr(neuron, potential)) for step in x]
            return [torch.stack(parts) for parts in zip(*out)]

    torch.manual_seed(0)
    net, seen = Loop(), []
    with snnfast.monitor(net, every=2, keep=["spikes", "v"]) as m:
        for _ in range(3):
            s, v = net(5 * torch.randn(T, B, 3))
            gradient = torch.randn(s.shape)
            (s * gradient).sum().backward()
            seen.append((s.detach(), v.detach(), gradient))
    record = m.layers["neuron"]
    assert record.calls == 3
    spikes = torch.cat([s for s, *_ in seen], 1).double()
    torch.testing.assert_close(record.rate, spikes.flatten(1).mean(1))
    assert record.dead == (spikes.sum((0, 1)) == 0).double().mean()
    sampled = torch.cat([seen[0][1], seen[2][1]], 1).double()
    torch.testing.assert_close(record.v.mean, sampled.flatten(1).mean(1))
    assert record.gradient.mean.shape == (T,)
    assert torch.equal(record.kept_spikes(), seen[2][0])
    assert torch.equal(record.potential, seen[2][1])


def test_what_is_compiled_says_that_it_is_not_seen(net):
    compiled = torch.compile(net, backend="eager")
    with pytest.warns(UserWarning, match="monitor: no call of a layer was seen"):
        with snnfast.monitor(net):
            compiled(data(0))


def test_inputs_of_several_sizes_and_none():
    lif = snnfast.nn.LIF()
    with snnfast.monitor(lif, every=1) as m:
        lif(torch.ones(3, B, 4)), lif(torch.ones(5, 2, 7)), lif(torch.ones(0, B, 4))
    record = m.layers[""]
    assert record.calls == 3 and record.rate.shape == (5,) and record.dead != record.dead
    assert "nan" in m.table()


def test_pictures(net, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    with snnfast.monitor(net, keep=["spikes", "v"]) as m:
        net(data(0))
    lines = m.table().splitlines()
    assert lines[0].split()[:4] == ["layer", "neurons", "calls", "rate"] and len(lines) == 3
    image = m.rates().images[0].get_array()
    torch.testing.assert_close(torch.tensor(image.data[1]), m.layers["out"].rate)
    dots = m.raster("out", sample=2).collections[0].get_offsets()
    assert len(dots) == net.s2[:, 2].sum()
    line = m.potential("out", 3, sample=1).lines[0].get_ydata()
    assert line.tolist() == m.layers["out"].potential[:, 1, 3].tolist()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda net: snnfast.monitor(3), TypeError, "monitor: model must be a torch module"),
        (lambda net: snnfast.monitor(nn.ReLU()), ValueError, "monitor: model must have neurons"),
        (lambda net: snnfast.monitor(net, layers=["no"]), ValueError, "layers must be names"),
        (lambda net: snnfast.monitor(net, every=0), ValueError, "every must be an int >= 1"),
        (lambda net: snnfast.monitor(net, keep="s"), ValueError, "keep must be among spikes, v"),
        (lambda net: snnfast.monitor(torch.compile(net)), ValueError, "must not be compiled"),
        (lambda net: snnfast.monitor(net).raster("out"), ValueError, "raster: keep must have"),
        (
            lambda net: snnfast.monitor(net, keep="v").potential("x", 0),
            ValueError,
            "potential: layer",
        ),
        (lambda net: snnfast.monitor(net, keep="v").potential("out", 0), ValueError, "been called"),
        (
            lambda net: snnfast.monitor(net).rates(),
            ValueError,
            "rates: a layer",
        ),
    ],
)
def test_wrong_arguments_are_named(net, call, error, message):
    with pytest.raises(error, match=message):
        call(net)


def test_nested_blocks_are_refused_and_nothing_stays(net):
    with snnfast.monitor(net):
        net(data(0))
        with pytest.raises(ValueError, match="must not be watched already"), snnfast.monitor(net):
            pass
    with pytest.raises(RuntimeError), snnfast.monitor(net):
        net(torch.zeros(T, B, 1, 6, 6))
    assert all("_watch" not in vars(module) for module in net.modules())
