"""Neurons as machine code: what is compiled and what is not, and how. That it computes what it must,
test_neuron_cpu.py and test_neuron.py say."""

import subprocess
import sys

import programs
import pytest
import torch
from test_neuron_cpu import adjoint_loop, all_same, backward, close, cotangents, run

import snnfast
from snnfast import surrogate as surrogates
from snnfast.backends import cpu
from snnfast.backends.cpu import compiled, interpreted, neuron
from snnfast.program import llvm
from snnfast.program.ir import Builder
from snnfast.program.step import Step
from snnfast.program.surrogates import gradient_program

ATAN = surrogates.ATan()
pytestmark = pytest.mark.skipif(not compiled.available(), reason="llvmlite is not installed")


@pytest.fixture(autouse=True)
def machine_code(monkeypatch):
    monkeypatch.setattr(neuron, "executor", lambda: compiled)


def test_it_is_taken_where_llvmlite_is(monkeypatch):
    monkeypatch.undo()
    assert neuron.executor() is compiled
    assert "machine code" in cpu.details()
    monkeypatch.setattr(compiled, "available", lambda: False)
    assert neuron.executor() is interpreted
    assert "interpreted" in cpu.details()


def test_llvmlite_is_imported_at_the_first_use():
    code = (
        "import sys, torch, snnfast\n"
        "from snnfast.neurons import lif\n"
        "assert 'llvmlite' not in sys.modules\n"
        "lif(torch.randn(3, 5))\n"
        "assert 'llvmlite' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
