"""``accelerate`` replaces exact types and subclasses that only set defaults, traces what overrides
a step, and leaves the rest with the method that blocks it."""

import pytest
import torch
from jelly_cases import (
    KINDS,
    VERSIONS,
    check_same,
    currents,
    fresh,
    module,
    node,
    options,
)
from torch import nn

import snnfast


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_01_exact_types(version, kind, mode, training):
    leaks = (1.25, 1.5, 2.0, 3.0, 10.0)
    for k, chosen in enumerate(options(leaks=leaks if kind == "LIFNode" else (3.0,))):
        if kind == "IFNode" and not chosen["decay_input"]:
            continue
        model = nn.Sequential(node(version, kind, mode, **chosen)).train(training)
        ours, theirs = fresh(model)
        assert [e.path for e in snnfast.accelerate(ours).replaced] == ["0"]
        for grid in (False, True):  # the second goes on from the state of the first
            x = currents(4, 8, 5, 3, grid=grid, seed=k)
            check_same(ours, theirs, x, steps=mode == "s")


def subclass(version, **overridden):
    """A LIFNode of a repository's own."""
    base = module(version).LIFNode
    return type("Own", (base,), overridden)


def test_requirement_01_only_defaults():
    for version in VERSIONS:
        base = module(version).LIFNode

        class Chosen(base):
            def __init__(self, base=base, **more):
                base.__init__(self, tau=1.5, decay_input=False, v_reset=None, **more)

            def extra_repr(self):
                return "chosen"

        model = nn.Sequential(Chosen())
        ours, theirs = fresh(model)
        report = snnfast.accelerate(ours)
        assert [e.cls for e in report.replaced] == ["Chosen"] and not report.traced
        check_same(ours, theirs, currents(5, 8, 7, grid=True), steps=True)


def charge_detached(self, x):
    """As SLTT has it: no gradient through time."""
    before = x if isinstance(self.v, float) else self.v.detach() * (1 - 1.0 / self.tau) + x
    self.v = before


def fire_scaled(self):
    return self.surrogate_function(self.v / 2 - self.v_threshold)


def reset_to_half(self, spike):
    self.v = self.v * (1.0 - 0.5 * spike)


OVERRIDES = {
    "neuronal_charge": charge_detached, "neuronal_fire": fire_scaled,
    "neuronal_reset": reset_to_half,
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("version", VERSIONS[:2])
def test_requirement_01_a_step_that_is_overridden_is_traced(version, name):
    own = subclass(version, **{name: OVERRIDES[name]})
    modes = [{"step_mode": "m"}, {"step_mode": "s"}] if version == "0.0.0.0.14" else [{}]
    for more in modes:
        ours, theirs = fresh(nn.Sequential(own(tau=3.0, **more)))
        report = snnfast.accelerate(ours)
        assert [e.cls for e in report.traced] == ["Own"]
        steps = more.get("step_mode") != "m"
        for training in (True, False):
            ours.train(training), theirs.train(training)
            for grid in (False, True):
                check_same(ours, theirs, currents(5, 8, 7, grid=grid), steps=steps)
            for model in (ours, theirs):
                model[0].reset()


def test_requirement_01_hooks_are_ignored_in_evaluation_where_they_were():
    """0.0.0.0.14 calls no hook of a LIFNode there."""
    ours, theirs = fresh(nn.Sequential(subclass("0.0.0.0.14", neuronal_charge=charge_detached)()))
    snnfast.accelerate(ours)
    x = currents(6, 8, 5)
    in_training = torch.stack([ours(x_t) for x_t in x]).detach()
    for model in (ours.eval(), theirs.eval()):
        model[0].reset()
    check_same(ours, theirs, x, steps=True)
    ours[0].reset()
    assert not torch.equal(torch.stack([ours(x_t) for x_t in x]), in_training)


def test_requirement_01_channels_and_multi_step_subclasses():
    class Gain(module("0.0.0.0.14").LIFNode):
        def __init__(self):
            super().__init__(step_mode="m", tau=3.0)
            self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 6).view(6, 1, 1))

        def neuronal_charge(self, x):
            self.v = self.v * 0.5 + self.gain * x

    class OverTime(module("0.0.0.0.12").MultiStepLIFNode):
        def neuronal_charge(self, x):
            self.v = self.v * self.tau / 4 + x

    for own in (Gain, OverTime):
        ours, theirs = fresh(nn.Sequential(own()))
        assert len(snnfast.accelerate(ours).traced) == 1
        for grid in (False, True):
            check_same(ours, theirs, currents(5, 4, 6, 3, 2, grid=grid))


class Merged:
    """A forward of its own on [T N, ...], as TWKD's layers have it."""

    def forward(self, x):
        if self.step_mode == "s":
            return self.one(x)
        self.reset()
        x = x.view(self.time_step, -1, *x.shape[1:])
        return torch.cat([self.one(x_t) for x_t in x])

    def one(self, x):
        self.v_float_to_tensor(x)
        self.neuronal_charge(x)
        spike = self.neuronal_fire()
        self.neuronal_reset(spike)
        return spike


@pytest.mark.parametrize("choice", [{}, {"v_reset": None, "tau": 1.25}], ids=["hard", "soft"])
def test_requirement_01_a_forward_over_merged_time(choice):
    own = type("Layer", (Merged, module("0.0.0.0.14").LIFNode), {})
    layer = own(decay_input=False, step_mode="m", **choice)
    layer.time_step = 4
    ours, theirs = fresh(nn.Sequential(layer))
    assert len(snnfast.accelerate(ours).traced) == 1
    for steps in (4, 6):
        ours[0].time_step = theirs[0].time_step = steps
        for training in (True, False):
            ours.train(training), theirs.train(training)
            check_same(ours, theirs, currents(steps * 3, 5, 2, 2, grid=training))


def test_requirement_01_a_forward_around_theirs():
    class Doubled(module("0.0.0.0.12").MultiStepLIFNode):
        def forward(self, x):
            return 2 * super().forward(x / 2)

    ours, theirs = fresh(nn.Sequential(Doubled()))
    assert len(snnfast.accelerate(ours).replaced) == 1
    check_same(ours, theirs, currents(5, 8, 7))


def counts(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    self.v = self.v + x


def draws(self, x):
    self.v = self.v + x * torch.rand_like(x)


def branches(self, x):
    self.v = self.v + x if float(x.sum()) > 0 else self.v


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("version", VERSIONS[1:])
def test_requirement_01_a_single_step_around_theirs(version, mode, training):
    class Louder(module(version).LIFNode):
        def single_step_forward(self, x):
            return super().single_step_forward(2 * x)

    ours, theirs = fresh(nn.Sequential(Louder(tau=3.0, step_mode=mode)).train(training))
    assert snnfast.accelerate(ours).replaced
    check_same(ours, theirs, currents(4, 3, 5, grid=True), steps=mode == "s")


@pytest.mark.parametrize("step", [counts, draws, branches], ids=lambda f: f.__name__)
def test_requirement_01_what_is_left_is_named(step):
    own = subclass("0.0.0.0.14", neuronal_charge=step)
    ours, theirs = fresh(nn.Sequential(own(), node("0.0.0.0.14")))
    ours[0].step_mode = theirs[0].step_mode = "m"
    report = snnfast.accelerate(ours)
    (left,) = report.left
    assert left.path == "0" and "neuronal_charge" in left.reason
    assert "Own (0): neuronal_charge" in str(report) and "1 replaced" in str(report)
    torch.manual_seed(1)
    a = ours(currents(5, 8, 7))
    torch.manual_seed(1)
    assert torch.equal(a, theirs(currents(5, 8, 7)))


def test_requirement_01_a_hook_that_is_never_called_is_named():
    model = nn.Sequential(subclass("2.0.0", neuronal_charge=charge_detached)(), node("2.0.0"))
    (left,) = snnfast.accelerate(model).left
    assert "neuronal_charge, which SpikingJelly 2.0 never calls" in left.reason


def test_requirement_01_nothing_to_accelerate_is_an_error():
    with pytest.raises(ValueError, match=r"^accelerate: model must have .*, got none in"):
        snnfast.accelerate(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"^accelerate: model must be a torch module, got int"):
        snnfast.accelerate(3)
    own = subclass("0.0.0.0.14", neuronal_charge=counts)()
    with pytest.raises(ValueError, match=r"^accelerate: .* got the model \(Own\): neuronal_charge"):
        snnfast.accelerate(own)
    assert type(own) is type(own) and type(own).__name__ == "Own" and not own._memories["v"]


def test_requirement_01_a_copy_that_computes_otherwise_is_not_taken_for_theirs():
    """A class of the same name in a repository's own copy of SpikingJelly."""
    base = module("0.0.0.0.12").LIFNode

    def charge(self, x):
        self.v = self.v + (x - self.v) / self.tau * 0.5

    name = "src.spikingjelly.clock_driven.neuron"
    changed = type("LIFNode", (base.__mro__[1],), {**vars(base), "neuronal_charge": charge})
    changed.__module__ = name
    changed.forward = lambda self, x: base.__mro__[1].forward(self, x)
    same = type("LIFNode", (base.__mro__[1],), {"__module__": name} | {
        k: v for k, v in vars(base).items() if k in ("__init__", "neuronal_charge", "extra_repr")
    })  # fmt: skip
    for cls, replaced in ((changed, 0), (same, 1)):
        made = object.__new__(cls)
        made.__dict__.update(base(tau=3.0).__dict__)
        ours, theirs = fresh(nn.Sequential(made, node("0.0.0.0.12", mode="s")))
        report = snnfast.accelerate(ours)
        assert len(report.replaced) == 1 + replaced
        if not replaced:
            assert "differs from those known" in report.left[0].reason
        check_same(ours, theirs, currents(5, 8, 7), steps=True)


def test_requirement_01_what_is_patched_is_compared(monkeypatch):
    """A method of the installed release that something else has put in the place of theirs."""
    from snnfast.interop.spikingjelly import _judge

    kind = module("2.0.0").IFNode
    monkeypatch.setattr(kind, "multi_step_forward", lambda self, x: x)
    monkeypatch.setattr(_judge, "_known", {})
    _judge._is_released.cache_clear()
    report = snnfast.accelerate(nn.Sequential(node("2.0.0", "IFNode"), node("2.0.0")))
    assert [e.path for e in report.replaced] == ["1"]
    assert "differs from those known: outputs" in report.left[0].reason
    _judge._is_released.cache_clear()


def test_requirement_01_a_call_that_is_not_ours_now_is_left():
    odd = node("2.0.0")
    odd._neuron_precision = ("fp16", "fp32", "fp32")
    (left,) = snnfast.accelerate(nn.Sequential(odd, node("2.0.0"))).left
    assert left.reason == "it has a precision of its own"

    class Registered(module("2.0.0").LIFNode):
        names = set()

        def __init_subclass__(cls):
            if cls.__name__ in cls.names:
                raise TypeError("registered already")
            cls.names.add(cls.__name__)

    class Own(Registered):
        pass

    (left,) = snnfast.accelerate(nn.Sequential(Own(), node("2.0.0"))).left
    assert left.reason == "no subclass can be made of it: registered already"
