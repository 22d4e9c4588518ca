"""That what is traced is what PyTorch runs, also where a step is written in an odd way, and that a
trace is used again only where the step would do the same."""

import enum
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

import snnfast
from snnfast import spike

THETA = 1.0
NUMBERS = [0.5, 1.0]


def _clone(x, v):
    h = v / 2 + x
    with torch.no_grad():
        kept = h.clone()
    return kept * x, h


def _spike(x, v):
    h = v / 2 + x
    with torch.no_grad():
        s = spike(h)
    return s * x, h - s


def _masked(x, v):
    """What a NaN is replaced by has no gradient to it."""
    y = torch.where(x == x, torch.sqrt(x.clamp(1e-3, 4.0)), 0.0)
    return y, v / 2 + y


def _bounded(x, v):
    y = torch.clamp(x, torch.where(v > 0, v, torch.nan), 1 + v * v)
    return torch.where(y == y, y, x * 0.5), v / 2 + torch.where(x == x, x, 0.0)


def _tied(x, v):
    return torch.clamp(x, v, torch.minimum(v, x * x)), v / 2 + x


STEPS = {
    "a sum of truth values": lambda x, v: (((x > 0) + (v > 0)) * x, v + x),
    "a product of truth values": lambda x, v: (((x > 0) * (v > 0)) * x, v + x),
    "a number as a truth value": lambda x, v: (x.bool() * v + x.to(torch.bool).float(), v + x),
    "a filled truth value": lambda x, v: ((x > 0).masked_fill(v > 0, 5) * x, v + x),
    "a truth value of a number": lambda x, v: (torch.full_like(x, 3, dtype=torch.bool) * x, v + x),
    "a clone without gradient": _clone,
    "a spike without gradient": _spike,
    "relu6": lambda x, v: (functional.relu6(x), v / 2 + x),
    "hardtanh": lambda x, v: (functional.hardtanh(x), v / 2 + functional.hardtanh(v, -0.5, 2.0)),
    "a NaN that is bounded": _masked,
    "a bound that is NaN": _bounded,
    "bounds that are equal, or no bounds": _tied,
    "a spike as a truth value": lambda x, v: (torch.where(spike(x).bool(), v, x), v / 2 + x),
}


@pytest.mark.parametrize("case", STEPS)
def test_equals_pytorch(case):
    step = STEPS[case]
    neuron = snnfast.neuron(step)
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, 6.0, 0.3, torch.nan, -2.0]).repeat(3, 2, 1)
    x[1:] += torch.randn(2, 2, 8)
    x = torch.where(x == x, x, 0.5) if case not in ("a NaN that is bounded", "relu6") else x
    found, expected = [], []
    for results, backend in ((found, "cpu"), (expected, "reference")):
        leaf, v = x.clone().requires_grad_(), torch.full((2, 8), 0.25, requires_grad=True)
        y, after = neuron(leaf, states=v, return_state=True, backend=backend)
        along = torch.linspace(1, 2, y.numel()).view_as(y), torch.linspace(1, 2, 16).view(2, 8)
        results += [y, after, *torch.autograd.grad((y, after), (leaf, v), along)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


def _hooked(x, v):
    h = v + x
    h.register_hook(lambda gradient: gradient / 2)
    return h, h


REFUSED = {
    "a factor of a difference": (lambda x, v: (torch.rsub(x, 2.0, alpha=3), v), "alpha="),
    "the number of axes": (lambda x, v: (x * x.ndim, v), "must not depend on the shape"),
    "an index": (lambda x, v: (x * v[:, :, :, :, 0], v), "must not index its arguments"),
    "a hook": (_hooked, "must not hold a hook on a tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    step, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        snnfast.neuron(step)


def test_the_default_device_is_no_matter():
    with torch.device("meta"):
        neuron = snnfast.neuron(lambda x: x * torch.tensor(0.5) + torch.full((), 0.25))
    assert neuron(torch.ones(2, 3)).sum() == 4.5


class Letter(enum.StrEnum):
    A = "a"


SAME = [(1, 1.0), (1, True), (0, False), (0.0, -0.0), (("b", 1), ("b", True)), ("a", Letter.A)]


@pytest.mark.parametrize(("one", "other"), SAME, ids=repr)
def test_what_is_equal_is_not_the_same(one, other):
    @snnfast.neuron
    def neuron(x, *, kind=one):
        return x * (1.0 if repr(kind) == repr(one) else 2.0)

    x = torch.ones(2, 3)
    assert neuron(x).sum() == 6 and neuron(x, kind=other).sum() == 12
    assert neuron(x, kind=one).sum() == 6


class Box:
    """A number that may change."""

    def __init__(self, theta):
        self.theta = theta

    def step(self, x):
        return spike(x - self.theta)


def _of_closure():
    theta = 1.0

    def change(to):
        nonlocal theta
        theta = to

    return snnfast.neuron(lambda x: spike(x - theta)), change


def _of_helper():
    theta, scale = 1.0, lambda: theta

    def change(to):
        nonlocal theta
        theta = to

    def above(x):
        return x - scale()

    return snnfast.neuron(lambda x: spike(above(x))), change


def _of_global():
    return snnfast.neuron(lambda x: spike(x - THETA)), lambda to: globals().update(THETA=to)


def _of_list():
    def change(to):
        NUMBERS[1] = to

    return snnfast.neuron(lambda x: spike(x - NUMBERS[1])), change


def _of_method():
    box = Box(1.0)
    return snnfast.neuron(box.step), lambda to: setattr(box, "theta", to)


def _of_parameter():
    box = Box(1.0)

    @snnfast.neuron
    def neuron(x, *, box=box):
        return spike(x - box.theta)

    return neuron, lambda to: setattr(box, "theta", to)


def _of_tensor():
    theta = torch.tensor(1.0)
    return snnfast.neuron(lambda x: spike(x - theta)), theta.fill_


OUTSIDE = (_of_closure, _of_helper, _of_global, _of_list, _of_method, _of_parameter, _of_tensor)


@pytest.mark.parametrize("made", OUTSIDE)
def test_a_number_that_changes_is_read_again(made):
    neuron, change = made()
    x = torch.linspace(0, 1, 11).expand(3, 11)
    change(1.0)
    assert neuron(x).sum() == 3
    change(0.35)
    assert torch.equal(neuron(x), (x >= 0.35).float())
    change(1.0)
    assert neuron(x).sum() == 3


@pytest.mark.parametrize("name", snnfast.neurons.__all__)
def test_a_neuron_is_traced_once(name, monkeypatch):
    neuron, x = getattr(snnfast.neurons, name), torch.randn(3, 2, 4)
    first = neuron(x, backend="cpu")
    monkeypatch.setattr("snnfast.ops.neuron_plan.trace", None)
    assert torch.equal(neuron(x, backend="cpu"), first)


def test_a_surrogate_reads_its_numbers_again():
    scale = 1.0

    class Flat(snnfast.surrogate.Surrogate):
        def gradient(self, u):
            return torch.full_like(u, scale)

    flat, neuron = Flat(), snnfast.neuron(lambda x: spike(x))
    for scale in (1.0, 3.0):
        x = torch.zeros(2, 3, requires_grad=True)
        neuron(x, surrogate=flat).sum().backward()
        assert x.grad.unique().item() == scale


THREADS = """
import threading
import torch
import snnfast

torch.set_num_threads(1)
x = torch.randn(9, 4, 5)

def made(k):
    @snnfast.neuron
    def neuron(x, v, *, q=1.0):
        h = v * k + x * q
        s = snnfast.spike(h - 1)
        return s, h * (1 - s)
    return neuron

neurons = [made(0.1 * k) for k in range(6)]
right = [[n(x, q=0.5 + j, backend="reference") for j in range(2)] for n in neurons]

def work(first):
    for i in range(12):
        k = (i + first) % 6
        for j in range(2):
            leaf = x.clone().requires_grad_()
            s = neurons[k](leaf, q=0.5 + j, surrogate=("atan", "sigmoid")[first % 2])
            s.sum().backward()
            assert torch.equal(s, right[k][j])

failed = []
threading.excepthook = lambda what: failed.append(what)
threads = [threading.Thread(target=work, args=(first,)) for first in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
"""


def test_threads_may_call_at_once():
    """In a process of its own: what is compiled twice at once must not be freed while it runs."""
    subprocess.run([sys.executable, "-c", THREADS], check=True, timeout=120)
