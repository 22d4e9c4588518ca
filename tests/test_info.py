"""What a backend says where it cannot run: the cause, and a remedy that helps there."""

import sys
import sysconfig
import types

import pytest
import torch

import snnfast
import snnfast.kernels
from snnfast.backends import cpu, cuda, triton
from snnfast.backends.cpu import launch as cpu_launch
from snnfast.backends.cuda import launch, nvrtc


@pytest.fixture(autouse=True)
def forgotten():
    """What was found out before is found out again."""
    found = (cpu.available, cuda.available, triton.available, launch.broken, launch.not_built)
    found += (launch.ahead_of_time, launch.compiled)

    def forget():
        for each in found:
            getattr(each, "cache_clear", lambda: None)()

    forget()
    yield
    forget()


@pytest.mark.parametrize("gpu", (False, True), ids=("no gpu", "rocm"))
def test_a_torch_without_cuda_is_not_to_be_installed_again(monkeypatch, gpu):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    text = cuda.available()
    assert text.startswith(f"torch {torch.__version__} was built without CUDA; ")
    assert "pip install torch" not in text and "pytorch.org" in text


@pytest.fixture
def gpu(monkeypatch):
    """A torch for CUDA 13 that finds a GPU."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))


def test_without_a_module_and_nvrtc(monkeypatch, gpu):
    monkeypatch.setattr(launch, "ahead_of_time", lambda: None)
    monkeypatch.setattr(launch, "not_built", lambda: "snnfast._cuda was not built: no nvcc")
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    text = cuda.available()
    assert text.startswith("snnfast._cuda was not built: no nvcc; ")
    assert text.endswith("pip install 'snnfast[cuda13]'")


def test_a_module_that_does_not_load(monkeypatch, gpu, tmp_path):
    """It is there, so that nothing else is taken in silence."""
    (tmp_path / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"no library")
    monkeypatch.setattr(snnfast, "__path__", [str(tmp_path), *snnfast.__path__])
    monkeypatch.delitem(sys.modules, "snnfast._cuda", raising=False)
    text = cuda.available()
    assert text.startswith("snnfast._cuda does not load: ") and "file too short" in text
    assert "reinstall snnfast" in text and cuda.details() in text


def test_a_module_of_older_sources(monkeypatch, gpu, tmp_path):
    (tmp_path / "_cuda.py").write_text("SIZES = {}")
    monkeypatch.setattr(snnfast, "__path__", [str(tmp_path)])
    monkeypatch.setattr(snnfast, "_cuda", None, raising=False)
    monkeypatch.delitem(sys.modules, "snnfast._cuda", raising=False)
    text = cuda.available()
    sys.modules.pop("snnfast._cuda", None)
    assert text.startswith("snnfast._cuda was built from older sources; reinstall snnfast")


@pytest.mark.parametrize(
    "status,said",
    [
        (0, None),
        (35, "the driver is too old for the CUDA that snnfast._cuda was built with: update it"),
        (98, "no code for this GPU: reinstall snnfast with SNNFAST_CUDA_ARCHS=120"),
        (209, "no code for this GPU: reinstall snnfast with SNNFAST_CUDA_ARCHS=120"),
        (100, "snnfast._cuda cannot be used: no CUDA-capable device"),
    ],
)
def test_what_the_driver_says(monkeypatch, gpu, status, said):
    """It is asked once, on the device that is the current one."""
    asked = []
    module = types.SimpleNamespace(
        probe=lambda device: asked.append(device) or status,
        error_string=lambda status: "no CUDA-capable device",
    )
    monkeypatch.setattr(launch, "broken", lambda: None)
    monkeypatch.setattr(launch, "ahead_of_time", lambda: module)
    text = cuda.available()
    assert (text is None) if said is None else (said in text)
    assert cuda.available() == text and asked == [1]


def test_what_the_driver_says_to_what_is_compiled(monkeypatch, gpu):
    """A kernel is compiled and loaded, or the reason told."""
    monkeypatch.setattr(launch, "broken", lambda: None)
    monkeypatch.setattr(launch, "ahead_of_time", lambda: None)
    monkeypatch.setattr(nvrtc, "library", lambda: object())

    def refused(text, options):
        assert "--gpu-architecture=sm_120" in options and "spikes.cuh" in text
        raise RuntimeError("invalid value for --gpu-architecture")

    monkeypatch.setattr(nvrtc, "cubin", refused)
    assert "NVRTC could not compile the kernel: invalid value for --gpu" in cuda.available()


def test_a_triton_that_the_kernels_cannot_use(monkeypatch):
    monkeypatch.delattr(snnfast.kernels, "lif_step", raising=False)
    monkeypatch.setitem(sys.modules, "snnfast.kernels.lif_step", None)
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
