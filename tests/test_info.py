"""What a backend says where it cannot run: the cause, and a remedy that helps there."""

import importlib.util
import sys

import pytest
import torch

import snnfast
import snnfast.kernels
from snnfast.backends import cpu, cuda, triton
from snnfast.backends.cpu import launch as cpu_launch
from snnfast.backends.cuda import launch


@pytest.fixture(autouse=True)
def forgotten():
    """What was found out before is found out again."""
    for backend in (cpu, cuda, triton):
        getattr(backend.available, "cache_clear", lambda: None)()
    yield
    for backend in (cpu, cuda, triton):
        getattr(backend.available, "cache_clear", lambda: None)()


@pytest.mark.parametrize("gpu", (False, True), ids=("no gpu", "rocm"))
def test_a_torch_without_cuda_is_not_to_be_installed_again(monkeypatch, gpu):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    text = cuda.available()
    assert text.startswith(f"torch {torch.__version__} was built without CUDA; ")
    assert "pip install torch" not in text and "pytorch.org" in text


def test_without_a_module_and_cupy(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "ahead_of_time", lambda: None)
    monkeypatch.setattr(launch, "not_built", lambda: "snnfast._cuda was not built: no nvcc")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = cuda.available()
    assert text.startswith("snnfast._cuda was not built: no nvcc; ")
    assert text.endswith("pip install cupy-cuda13x")


def test_a_triton_that_the_kernels_cannot_use(monkeypatch):
    monkeypatch.delattr(snnfast.kernels, "neuron", raising=False)
    monkeypatch.setitem(sys.modules, "snnfast.kernels.neuron", None)
    assert "the kernels need Triton 3.6 or newer: " in triton.available()
    assert "run: pip install -U triton" in snnfast.info()


def test_a_missing_cpu_module(monkeypatch):
    cpu_launch.module.cache_clear()
    monkeypatch.delattr(snnfast, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "snnfast._C", None)
    assert "snnfast._C" in cpu.available() and "snnfast's checkout" in cpu.available()
    cpu_launch.module.cache_clear()


def test_the_version_is_the_package_s(capsys):
    from snnfast.cli import main

    main(["--version"])
    assert capsys.readouterr().out == f"snnfast {snnfast.__version__}\n"
    assert snnfast.info().splitlines()[0].split() == ["snnfast", snnfast.__version__]
