"""Some random neurons and some steps of the family; tests/fuzz.py runs as many as one likes."""

import fuzz_neurons
import pytest
import torch

from snnfast.backends import cpu


def test_programs_and_the_family_are_as_the_loop(capsys):
    rounds = fuzz_neurons.Rounds(seed=1)
    for _ in range(4):
        rounds.program()
        rounds.family()
    assert rounds.report() == [], capsys.readouterr().out


@pytest.mark.parametrize("name", ["qif", "clif"])
def test_a_wrong_value_is_seen(name, monkeypatch):
    """One unit in the last place where it must be exact, and one spike off its threshold."""
    write = cpu.neuron_forward

    def neuron_forward(layer, inputs, states, params, outputs, new_states, *rest):
        write(layer, inputs, states, params, outputs, new_states, *rest)
        if name == "clif":
            outputs[0].view(-1)[-1] = 1 - outputs[0].view(-1)[-1]
        elif new_states:
            v = new_states[0].view(-1)
            v[-1] = torch.nextafter(v[-1], torch.tensor(torch.inf))

    monkeypatch.setattr(cpu, "neuron_forward", neuron_forward)
    wrong = fuzz_neurons.family_case(name, {}, seed=0, size=64)
    assert wrong and "1 values" in wrong


@pytest.mark.parametrize("which", ["outputs", "gradients"])
def test_a_wrong_program_is_seen(which, monkeypatch):
    run = {"outputs": cpu.neuron_forward, "gradients": cpu.neuron_backward}[which]

    def broken(layer, *given):
        run(layer, *given)
        written = given[3] if which == "outputs" else given[6]
        written = [t for t in written if t is not None]
        written[0].view(-1)[0] += 1

    name = {"outputs": "neuron_forward", "gradients": "neuron_backward"}[which]
    monkeypatch.setattr(cpu, name, broken)
    assert all(fuzz_neurons.program_case(case) for case in (1, 2))
