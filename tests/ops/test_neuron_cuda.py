"""What the CUDA backend fills by the C++ that it writes of a step, compiled for the host, held to
the loop over time; a misaligned access, or one outside the tensors, fails."""

import itertools

import backends
import programs
import pytest
import torch
from neuron_cases import NEURONS, adaptive, check, halves
from step_cases import EXACT, Case

from snnfast.backends.cuda import launch

pytestmark = pytest.mark.backends(backends.HOST)
WIDE = {"float32": 4, "float16": 8, "bfloat16": 8}


def table():
    """Arguments of ``check``, and whether accesses are of 16 bytes."""
    dtypes = itertools.cycle(("float32", *halves()))
    kinds = itertools.cycle(("numbers", "channels", "scalars"))
    states = itertools.cycle(("all", True, False))
    for (neuron, steps), shape in zip(
        itertools.product(NEURONS, (3, 20)), itertools.cycle(((3, 4, 16), (7, 5), (130, 8)))
    ):
        row = dict(neuron=neuron, T=steps, shape=shape, dtype=next(dtypes), state=next(states))
        yield row | dict(parameters=next(kinds)), shape != (7, 5)
    # Neighbours of one channel, of two, of many.
    for dtype, shape in itertools.product(("float32", "bfloat16"), ((2, 5, 24), (8, 4, 3), (3, 8))):
        yield dict(T=9, shape=shape, dtype=dtype, state=True, parameters="channels"), True
    yield dict(T=8, shape=(3, 8), layout="every second step", state=False), True
    yield dict(T=9, shape=(2, 3, 4, 8), layout="channels_last", parameters="channels"), True
    yield dict(T=7, shape=(5, 3), parameters="channels", states=False), False
    for neuron, dtype in (("adaptive", "bfloat16"), ("two_compartments", "float32")):
        yield dict(neuron=neuron, T=9, shape=(2, 3, 8), dtype=dtype, static=True, state=True,
                   parameters="channels"), True  # fmt: skip


@pytest.mark.parametrize(
    "arguments, wide", list(table()), ids=lambda v: backends.named(v) if isinstance(v, dict) else ""
)
def test_equals_the_loop(backend, arguments, wide):
    """16 bytes at a time where they divide what there is."""
    check(backend, **arguments)
    host, lanes = launch.ahead_of_time(), WIDE[arguments.get("dtype", "float32")] if wide else 1
    assert host.names[-2:] == ["snnfast_neuron"] * 2
    assert all(f"-DSNN_LANES={lanes}" in names for names in host.compiled[-2:])


@pytest.mark.parametrize("name", sorted({"izhikevich", "exponential"}))
def test_named_steps(backend, name):
    Case(programs.named(name), 9, 136).check(backend, exact=name in EXACT)


@pytest.mark.parametrize("seed", range(4))
def test_random_steps(backend, seed):
    exact = seed % 2 == 0
    step = programs.random_step(seed, exact)
    static = (0,) if step.inputs > 1 else ()
    Case(step, (3, 11)[seed // 2], 24, channels=3, static=static, seed=seed).check(backend, exact)


def test_steps_that_differ_in_numbers_are_compiled_once(backend):
    x = torch.randn(3, 16, requires_grad=True)
    for tau in (20.0, 5.0):
        adaptive(x, tau=tau, beta=tau, backend="cuda").sum().backward()
    assert len(launch.ahead_of_time().compiled) == 2
