"""What all tests share: poisoned uninitialised memory, and the backends that run here."""

import gc
import socket
from importlib.metadata import version

import pytest
import torch

from snnfast.ops import allocate

_EMPTY = {name: getattr(torch, name) for name in ("empty", "empty_like", "empty_strided")}


def _poisoned(make):
    def allocate(*args, **kwargs):
        tensor = make(*args, **kwargs)
        if not tensor.is_meta and tensor.numel():
            if tensor.is_floating_point():
                tensor.detach().fill_(float("nan"))  # of a parameter, too
            elif tensor.dtype == torch.uint8:
                tensor.fill_(255)
        return tensor

    return allocate


@pytest.fixture(autouse=True)
def poisoned_memory(request, monkeypatch):
    """torch.empty* and kept memory return NaN, or bits that are all set, so that an element that no
    kernel wrote fails the test."""
    if request.node.get_closest_marker("unpoisoned"):
        return
    for name, make in _EMPTY.items():
        monkeypatch.setattr(torch, name, _poisoned(make))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(allocate, "from_dlpack", _poisoned(allocate.from_dlpack))


@pytest.fixture(autouse=True)
def fixed_seed():
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # for devices that are not there it would write the whole stack down, three times
        torch.default_generator.manual_seed(0)


def pytest_collection_finish():
    """Modules and thousands of items are not looked through by every collection of garbage."""
    gc.freeze()


def pytest_configure(config):
    config.addinivalue_line("markers", "unpoisoned: leave torch.empty as it is (compile, opcheck)")


def pytest_report_header():
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "numpy"))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def read_at_once(request):
    """The machine code that the tests of a file look at is disassembled together."""
    from _machine_code import reading

    tests = (item for item in request.session.items if item.path == request.path)
    with reading([test for test in tests if "read_at_once" in test.fixturenames]):
        yield


@pytest.fixture
def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
