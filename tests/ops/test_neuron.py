"""What a neuron of ``@snnfast.neuron`` must do on every backend: outputs and states equal the
function's in a loop, bit for bit, and gradients come as near to float64 as float32 lets them."""

import itertools

import pytest
import torch
from backends import EVERY, INTERPRETED, PROGRAMS, named
from neuron_cases import NEURONS, adaptive, check, halves, integrator, resting

import snnfast

pytestmark = pytest.mark.backends(*EVERY)

FEW = (2, 3, 5, 7)


def table():
    """Arguments of ``check``."""
    states = itertools.cycle((False, True, "all"))
    kinds = itertools.cycle(("numbers", "scalars", "channels"))
    dtypes = itertools.cycle(("float32", *halves(), "float64"))
    for neuron, steps in itertools.product(NEURONS, (1, 3, 8, 9, 20)):
        for shape in ((1, 1), (7, 5), (3, 11, 31)):
            yield dict(neuron=neuron, T=steps, shape=shape, dtype=next(dtypes),
                       state=next(states), parameters=next(kinds))  # fmt: skip
    for neuron, layout in itertools.product(
        ("adaptive", "two_compartments"),
        ("channels_last", "batch_last", "every second step", "padded", "batch first", "expanded"),
    ):
        yield dict(neuron=neuron, T=9, shape=FEW, layout=layout, parameters=next(kinds),
                   dtype=next(dtypes))  # fmt: skip
    for neuron, steps in itertools.product(NEURONS, (1, 9)):
        yield dict(neuron=neuron, T=steps, static=True, parameters=next(kinds),
                   state=next(states), dtype=next(dtypes))  # fmt: skip
    for surrogate in snnfast.surrogate.TABLE:
        yield dict(surrogate=surrogate, shape=(203,))
    yield dict(neuron="resting", hard=False, parameters="channels", states=False, T=11)
    yield dict(neuron="resting", parameters="channels", states=False)
    yield dict(states=False, T=17, state=False)
    yield dict(T=4, shape=())
    yield dict(T=4, shape=(4099,), parameters="scalars")
    yield dict(T=100, shape=(33,), parameters="scalars")


@pytest.mark.backends(*(b for b in PROGRAMS if not b.slow))
@pytest.mark.parametrize("arguments", list(table()), ids=named)
def test_equals_the_loop(backend, arguments):
    backend.skip_unless(getattr(torch, arguments.get("dtype", "float32")))
    check(backend, **arguments)


@pytest.mark.backends(INTERPRETED)
@pytest.mark.parametrize("arguments", list(table())[::3], ids=named)
def test_equals_the_loop_where_it_is_slow(backend, arguments):
    test_equals_the_loop(backend, arguments)


class Cauchy(snnfast.surrogate.Surrogate):
    """One that no kernel knows."""

    def gradient(self, x):
        return 1 / (3.0 * (1 + x * x))


class Detaching(snnfast.surrogate.Surrogate):
    def gradient(self, x):
        return 1 / (3.0 * (1 + x.detach() * x))


def test_a_surrogate_of_ones_own_may_detach(backend):
    check(backend, surrogate=Detaching())


def test_a_surrogate_of_ones_own_is_fused(backend):
    check(backend, surrogate=Cauchy())
    x = torch.randn(4, 3, device=backend.device)
    calls = snnfast.explain(adaptive, x, surrogate=Cauchy(), backend=backend.name)
    assert calls[0][1] == backend.name


def test_a_split_sequence_gives_the_same(backend):
    x = 20 * torch.randn(23, 40, device=backend.device)
    whole, last = adaptive(x, return_state=True, backend=backend.name)
    parts, states = [], None
    for part in x.split([1, 8, 9, 5]):
        s, states = adaptive(part, states=states, return_state=True, backend=backend.name)
        parts.append(s)
    assert torch.equal(torch.cat(parts), whole)
    assert all(map(torch.equal, states, last))


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0), (4, 2, 0, 3)], ids=str)
@pytest.mark.parametrize("state", [False, True, "all"])
def test_empty_input(backend, shape, state):
    x = torch.randn(shape, device=backend.device, requires_grad=True)
    v0 = torch.randn(shape[1:], device=backend.device, requires_grad=True)
    rate = torch.tensor(0.5, device=backend.device, requires_grad=True)
    out = integrator(x, states=v0, beta=rate, return_state=state, backend=backend.name)
    y, v = out if state else (out, out)
    assert y.shape == x.shape
    assert v.shape == (x.shape if state == "all" or not state else x.shape[1:])
    if state is True and not shape[0]:
        assert torch.equal(v, v0)
    total = y.sum() + v.sum()
    if total.requires_grad:
        torch.autograd.grad(total, (x, v0, rate), allow_unused=True)


def test_gradients_are_the_same_bits_every_time(backend):
    """Whatever the number of threads."""
    shape = (4, 2, 3, 11, 13) if backend.slow else (4, 2, 3, 41, 43)
    x = (20 * torch.randn(shape, device=backend.device)).requires_grad_()
    rho = torch.full((3,), 0.9, device=backend.device, requires_grad=True)
    ds, threads, results = torch.randn(shape, device=backend.device), torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        s = adaptive(x, rho=rho, backend=backend.name)
        results.append(torch.autograd.grad(s, (x, rho), ds))
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_no_gradient_where_none_is_wanted(backend):
    x = torch.randn(9, 4, 3, device=backend.device)
    rate = torch.full((3,), 0.5, device=backend.device, requires_grad=True)
    (alone,) = torch.autograd.grad(integrator(x, beta=rate, backend=backend.name).sum(), rate)
    x.requires_grad_()
    y = integrator(x, beta=rate, backend=backend.name)
    both = torch.autograd.grad(y.sum(), (x, rate))
    assert torch.equal(alone, both[1])


def test_the_state_at_rest_follows_the_parameter(backend):
    rest = torch.full((3,), -0.3, device=backend.device, requires_grad=True)
    x = torch.zeros(0, 2, 3, device=backend.device)
    _, v = resting(x, v_rest=rest, return_state=True, backend=backend.name)
    assert torch.equal(v, rest.expand(2, 3))
