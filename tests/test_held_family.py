"""That ``held_family`` sees what is wrong, on the CPU's kernels; tests/ops/test_family.py has it
held to those of a GPU."""

import pytest
import torch
from held_family import Case, held

from snnfast.backends import cpu


@pytest.mark.parametrize("name", ["qif", "clif"])
@pytest.mark.parametrize("kind", ["numbers", "scalars", "channels"])
def test_kernels_that_are_right(name, kind):
    found = held(Case(name, {}, 9, 200, kind), "cpu")
    assert not found.fails and found.neuron_steps == 1800


@pytest.mark.parametrize("name", ["qif", "clif"])
def test_a_wrong_value_is_seen(name, monkeypatch):
    """One unit in the last place where it must be exact, and one spike off its threshold."""
    write = cpu.neuron_forward

    def neuron_forward(layer, inputs, states, params, outputs, news, *rest):
        write(layer, inputs, states, params, outputs, news, *rest)
        if name == "clif":
            outputs[0].view(-1)[-1] = 1 - outputs[0].view(-1)[-1]
        else:
            last = news[0].view(-1)[-1:]
            last.copy_(torch.nextafter(last, torch.tensor(torch.inf)))

    monkeypatch.setattr(cpu, "neuron_forward", neuron_forward)
    assert held(Case(name, {}, 9, 200), "cpu").wrong == 1


@pytest.mark.parametrize("which", ["every one", "one", "a parameter's"])
def test_a_wrong_gradient_is_seen(which, monkeypatch):
    """All a little off, or one by a hundredth."""
    write = cpu.neuron_backward

    def neuron_backward(*given):
        write(*given)
        dx, dparam = given[-3][0], given[-1][0]
        if which == "every one":
            dx *= 1 + 1e-6
        else:
            wrong = (dx if which == "one" else dparam).view(-1)
            wrong[wrong.abs().argmax()] *= 1.01

    monkeypatch.setattr(cpu, "neuron_backward", neuron_backward)
    assert held(Case("qif", {}, 9, 200, "scalars"), "cpu").fails
