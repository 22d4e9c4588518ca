"""Subclasses of the compatible nodes: what they override is called, in training and in
evaluation."""

import copy
import pickle

import jelly_pairs as pairs
import pytest
import torch
from live import live

import snnfast


def _charged(package, base):
    class Charged(getattr(package.neuron, base)):
        """V without a gradient through time, X divided on its own."""

        def neuronal_charge(self, x):
            v = self.v.detach() if isinstance(self.v, torch.Tensor) else self.v
            self.v = x / self.tau + v * (1 - 1 / self.tau)

    return Charged


def _reset(package, base):
    class Reset(getattr(package.neuron, base)):
        def neuronal_reset(self, spike):
            super().neuronal_reset(spike)
            self.v = self.v * 0.5

    return Reset


def _fire(package, base):
    class Fire(getattr(package.neuron, base)):
        def neuronal_fire(self):
            return self.surrogate_function(self.v - 0.7 * self.v_threshold)

    return Fire


def _own(package, base):
    """Of BaseNode, with a memory and a step of its own."""

    class Own(package.neuron.BaseNode):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_memory("m", 0.0)

        def neuronal_charge(self, x):
            self.m = self.m * 0.5 + x
            self.v = self.v + self.m

    return Own


MAKERS = {"charge": _charged, "reset": _reset, "fire": _fire, "own": _own}


def _pair(version, maker):
    """A single-step subclass of theirs and of ours. All of .14's are trained: in evaluation it
    ignores the hooks of subclasses of LIFNode."""
    return [MAKERS[maker](package, "LIFNode")() for package in (live(version), pairs.OURS[version])]


@pytest.mark.parametrize("version", pairs.VERSIONS)
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hooks_are_honoured(version, maker, training):
    theirs, ours = _pair(version, maker)
    ours.train(training)
    x = pairs.inputs("grid").requires_grad_()
    other = x.detach().clone().requires_grad_()
    for _ in range(2):
        a = torch.stack([ours(x_t) for x_t in x])
        b = torch.stack([theirs(x_t) for x_t in other])
        assert torch.equal(a, b) and torch.equal(ours.v, theirs.v)
    a.cumsum(0).sum().backward()
    b.cumsum(0).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    ours.reset(), theirs.reset()
    assert dict(ours.named_memories()) == dict(theirs.named_memories())
    assert type(ours.v) is float


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hooks_are_honoured_over_all_timesteps(maker, training):
    ours = MAKERS[maker](pairs.OURS["0.0.0.0.14"], "LIFNode")(step_mode="m", store_v_seq=True)
    theirs = MAKERS[maker](live("0.0.0.0.14"), "LIFNode")(step_mode="m", store_v_seq=True)
    x = pairs.inputs("grid")
    with torch.no_grad():
        assert torch.equal(ours.train(training)(x), theirs(x))
    assert torch.equal(ours.v_seq, theirs.v_seq)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_multi_step_classes_call_the_hooks_as_well(training):
    theirs, ours = (
        _charged(package, "MultiStepLIFNode")(tau=3.0)
        for package in (live("0.0.0.0.12"), pairs.OURS["0.0.0.0.12"])
    )
    x = pairs.inputs("random")
    with torch.no_grad():
        assert torch.equal(ours.train(training)(x), theirs.train(training)(x))
    assert torch.equal(ours.v_seq, theirs.v_seq)


def test_single_step_forward_of_a_subclass_is_what_all_timesteps_call():
    class Counts(pairs.OURS["0.0.0.0.14"].neuron.LIFNode):
        calls = 0

        def single_step_forward(self, x):
            self.calls += 1
            return super().single_step_forward(x)

    node, x = Counts(step_mode="m"), pairs.inputs("grid")
    plain = pairs.OURS["0.0.0.0.14"].neuron.LIFNode(step_mode="m")
    for training in (True, False):
        assert torch.equal(node.train(training)(x), plain.train(training)(x))
    assert node.calls == 2 * len(x)


def test_a_hook_put_on_one_node_is_called():
    node = pairs.OURS["0.0.0.0.12"].neuron.MultiStepLIFNode()
    node.neuronal_fire = lambda: torch.zeros_like(node.v)
    assert not node(pairs.inputs("grid")).any()


def test_what_only_sets_defaults_runs_in_one_launch(monkeypatch):
    class Mine(pairs.OURS["0.0.0.0.12"].neuron.MultiStepLIFNode):
        def __init__(self):
            super().__init__(tau=2.0, v_threshold=0.5, detach_reset=True, backend="cupy")

    node = Mine()
    monkeypatch.setattr(node.__class__, "_by_hooks", None)
    assert node(pairs.inputs("grid")).any()


@pytest.mark.parametrize("version", pairs.VERSIONS)
def test_memories(version):
    base = pairs.OURS[version].base

    class Two(base.MemoryModule):
        def __init__(self):
            super().__init__()
            self.register_memory("a", 0.5)
            self.register_memory("b", None)

    module = Two()
    with pytest.raises(ValueError, match="Two: the memory must have a name of its own, got 'a'"):
        module.register_memory("a", 1.0)
    module.a, module.b = torch.ones(2, requires_grad=True) * 2, torch.zeros(1)
    assert "a" in dir(module) and not module.state_dict()
    assert list(module.memories()) == [module.a, module.b]
    module.detach()
    assert not module.a.requires_grad
    module.double()
    assert module.a.dtype == module.b.dtype == torch.float64
    for other in (copy.deepcopy(module), module._replicate_for_data_parallel()):
        assert torch.equal(other.a, module.a)
    module.reset()
    assert (module.a, module.b) == (0.5, None)
    del module.b
    assert not hasattr(module, "b") and list(module.named_memories()) == [("a", 0.5)]


@pytest.mark.parametrize("version", pairs.VERSIONS)
def test_thresholds_set_by_hand_last_as_long_as_theirs(version):
    theirs, ours = pairs.both(version, "LIFNode")
    for node in (theirs, ours):
        node.v_threshold = 0.25
    x = pairs.inputs("grid")
    assert torch.equal(ours(x), theirs(x))
    theirs.reset(), ours.reset()
    assert ours.v_threshold == theirs.v_threshold


@pytest.mark.parametrize("version", pairs.VERSIONS)
def test_v_is_a_number_until_there_is_input(version):
    theirs, ours = pairs.both(version, "LIFNode", v_reset=-0.5)
    assert type(ours.v) is float and ours.v == theirs.v
    ours.v_float_to_tensor(torch.zeros(3))
    assert torch.equal(ours.v, torch.full((3,), -0.5))
    ours.reset()
    again = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    assert torch.equal(again(pairs.inputs("grid")), theirs(pairs.inputs("grid")))


@pytest.mark.parametrize("version", pairs.VERSIONS)
def test_a_changed_batch_is_named(version):
    _, ours = pairs.both(version, "LIFNode")
    ours(pairs.inputs("grid", (3, 4, 5)))
    with pytest.raises(ValueError, match=r"LIFNode: v must have the shape.*reset_net"):
        ours(pairs.inputs("grid", (3, 2, 5)))
    pairs.OURS[version].functional.reset_net(ours)
    ours(pairs.inputs("grid", (3, 2, 5)))


@pytest.mark.parametrize("version", pairs.VERSIONS)
def test_positional_arguments(version):
    theirs, ours = live(version).neuron, pairs.OURS[version].neuron
    surrogate = pairs.OURS[version].surrogate.ATan()
    if version == "0.0.0.0.12":
        calls = {
            "IFNode": (0.5, None, surrogate, True, False),
            "LIFNode": (3.0, False, 0.5, None, surrogate, True, False),
            "ParametricLIFNode": (3.0, False, 0.5, None, surrogate, True),
            "MultiStepIFNode": (0.5, None, surrogate, True, "torch", 64),
            "MultiStepLIFNode": (3.0, False, 0.5, None, surrogate, True, "torch", 64),
            "MultiStepParametricLIFNode": (3.0, False, 0.5, None, surrogate, True, "torch"),
        }
    else:
        calls = {
            "IFNode": (0.5, None, surrogate, True, "m", "torch", True),
            "LIFNode": (3.0, False, 0.5, None, surrogate, True, "m", "torch", True),
            "ParametricLIFNode": (3.0, False, 0.5, None, surrogate, True, "m", "torch", True),
        }
    for name, arguments in calls.items():
        a, b = getattr(theirs, name)(*arguments), getattr(ours, name)(*arguments)
        read = ("v", "v_threshold", "v_reset", "detach_reset", "tau", "decay_input", "backend")
        for attribute in (*read, "step_mode", "store_v_seq", "v_seq"):
            assert getattr(b, attribute, "none") == getattr(a, attribute, "none"), (name, attribute)
        assert b.surrogate_function is surrogate
        if "Parametric" in name:
            assert torch.equal(b.w, a.w)


@pytest.mark.parametrize("version", pairs.VERSIONS)
@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("LIFNode", {"tau": 1.0}, "LIFNode: tau must be > 1, got 1.0"),
        ("LIFNode", {"tau": "2"}, "LIFNode: tau must be a number, got str"),
        ("ParametricLIFNode", {"init_tau": 0.5}, "LIFNode: init_tau must be > 1, got 0.5"),
        ("IFNode", {"v_threshold": None}, "IFNode: v_threshold must be a number, got NoneType"),
        ("IFNode", {"v_reset": "soft"}, "IFNode: v_reset must be a number .* got str"),
        ("IFNode", {"detach_reset": 1}, "IFNode: detach_reset must be True or False, got"),
    ],
)
def test_bad_arguments_are_named(version, kind, arguments, said):
    with pytest.raises((TypeError, ValueError), match=said):
        getattr(pairs.OURS[version].neuron, kind)(**arguments)


@pytest.mark.parametrize("version", pairs.VERSIONS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_integrator_never_fires(version, training):
    theirs, ours = pairs.both(version, "IFNode", v_threshold=float("inf"))
    x = pairs.inputs("random")
    assert not ours.train(training)(x).any()
    theirs.train(training)(x)
    assert torch.equal(ours.v, theirs.v) and not torch.isnan(ours.v).any()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("EIFNode", (2.0, 0.5, 0.7, 1.0, 0.1, -0.2)),
        ("MultiStepEIFNode", ()),
        ("QIFNode", (2.0, 0.7, 0.9, 1.0, 0.0, None)),
        ("LIAFNode", (torch.relu, True, 3.0, False)),
    ],
)
def test_the_other_nodes_of_the_older_namespace(name, arguments):
    x = pairs.inputs("grid", (4, 3, 5))
    theirs, ours = (
        getattr(package.neuron, name)(*arguments)
        for package in (live("0.0.0.0.12"), pairs.OURS["0.0.0.0.12"])
    )
    for node in (theirs, ours):
        node.reset()
    given = [x] if name.startswith("MultiStep") else x
    for x_t in given:
        assert torch.equal(ours(x_t), theirs(x_t)) and torch.equal(ours.v, theirs.v)


def test_steps_one_after_the_other_are_said_once():
    theirs, ours = pairs.both("0.0.0.0.12", "LIFNode")
    x = pairs.inputs("random", (4, 3, 5))
    for node in (theirs, ours):
        node.surrogate_function.set_spiking_mode(False)
    with pytest.warns(UserWarning, match="LIFNode: its steps run one after the other: Sigmoid"):
        s = ours(x)
    torch.testing.assert_close(s, theirs(x))


def test_v_seq_is_made_when_it_is_read(monkeypatch):
    """And is that of the call: with its numbers, its gradient, its first state."""
    theirs, ours = pairs.both("0.0.0.0.12", "ParametricLIFNode", decay_input=False, v_reset=None)
    for again in range(3):
        x, seen = pairs.inputs("random", seed=again).requires_grad_(), []
        for node in (theirs, ours):
            node(x)
            node.v_threshold, node.detach_reset = 2.0 + again, again == 0
            with torch.no_grad():
                v_seq = node.v_seq
            seen.append((v_seq, *torch.autograd.grad(v_seq.cumsum(0).sum(), [x, node.w])))
            assert node.v_seq is v_seq
            node.detach()
        assert torch.equal(seen[0][0], seen[1][0])
        torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.parametrize("accelerated", [False, True])
def test_v_seq_that_nobody_read_is_copied_moved_and_listed(accelerated):
    theirs, ours = pairs.both("0.0.0.0.12", "LIFNode")
    if accelerated:
        ours = copy.deepcopy(theirs)
        snnfast.accelerate(ours)
    x = pairs.inputs("grid")
    ways = (
        copy.deepcopy,
        lambda node: pickle.loads(pickle.dumps(node)),
        lambda node: node.to(torch.float64).to(torch.float32),
        lambda node: node.detach() or node,
    )
    for way in ways:
        theirs.reset(), ours.reset()
        theirs(x), ours(x)
        assert torch.equal(way(ours).v_seq, theirs.v_seq)
        theirs.reset(), ours.reset()
        theirs(x), ours(x)
        assert torch.equal(dict(ours.named_memories())["v_seq"], theirs.v_seq)
    theirs(x), ours(x)
    assert all(isinstance(value, torch.Tensor | float) for value in ours.memories())
    with torch.inference_mode():
        theirs(x.clone()), ours(x.clone())
        assert torch.equal(ours.v_seq, theirs.v_seq)


def test_an_x_changed_in_place_is_no_v_seq():
    _, ours = pairs.both("0.0.0.0.12", "LIFNode")
    x = pairs.inputs("grid")
    ours(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="v_seq: the input of the call must stay as it was"):
        ours.v_seq  # noqa: B018
    ours.reset()
    assert ours.v_seq is None
