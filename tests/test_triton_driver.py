"""A launch past Triton's search for what is compiled takes the kernel that it would find."""

import _triton_driver
import pytest
import torch

import snnfast


@pytest.fixture
def driver():
    with _triton_driver.installed() as found:
        yield found


def inputs(T, N, dtype, offset):
    """x and ds [T, N], the first element ``offset`` elements behind a multiple of 16 bytes."""
    x, ds = (torch.zeros(T * N + offset, dtype=dtype)[offset:].view(T, N) for _ in range(2))
    return x.requires_grad_(), ds


CASES = [(4, 64, torch.float32, 0), (4, 64, torch.float32, 1), (4, 60, torch.float32, 0)]
CASES += [(1, 64, torch.float32, 0), (4, 64, torch.bfloat16, 0), (12, 64, torch.float32, 0)]


@pytest.mark.unpoisoned
def test_the_second_launch_is_of_the_same_kernel(driver):
    given = [inputs(*case) for case in CASES]

    def taken(search):
        driver.launches.clear()
        for x, ds in given:
            if search:
                _triton_driver.forget()
            torch.autograd.grad(snnfast.lif(x, backend="triton"), x, ds)
        return list(driver.launches)

    searched = taken(search=True)
    assert len(searched) == 2 * len(CASES) and len({kernel for kernel, _ in searched}) > 8
    assert taken(search=False) == searched == taken(search=False)


@pytest.mark.unpoisoned
def test_a_launch_that_is_known_asks_triton_for_nothing(driver, monkeypatch):
    x, ds = inputs(4, 64, torch.float32, 0)
    torch.autograd.grad(snnfast.lif(x, backend="triton"), x, ds)
    from snnfast.kernels import lif as kernels

    monkeypatch.setattr(type(kernels.lif_forward), "run", lambda *_, **__: pytest.fail("searched"))
    torch.autograd.grad(snnfast.lif(x, backend="triton"), x, ds)
    assert len(driver.launches) == 4
