"""What a call costs the host: microseconds of CPU, forward and backward, above an autograd.Function
with empty bodies that keeps and returns the same.

    python tests/host_time.py            # the C++ backend, on tensors too small to matter
    python tests/host_time.py triton     # Triton's launches go nowhere: what a GPU's host would do

The best of many runs, and the worst of three such bests.
"""

import contextlib
import sys
import time

import torch

import snnfast

LIF, NORM_LIF, TWKD = 45, 90, 45
"""What we aim at."""


def microseconds(call, calls=400, runs=7) -> float:
    best = float("inf")
    for _ in range(runs + 1):  # the first warms up
        begin = time.process_time()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time() - begin) / calls * 1e6)
    return best


class Empty(torch.autograd.Function):
    """Keeps all tensors, returns the first's like, and the same of those that want gradients."""

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return torch.empty_like(inputs[0])

    @staticmethod
    def backward(ctx, _):
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(torch.empty_like(t) if want else None for t, want in wanted)


def cases(backend):
    x, ds = torch.randn(4, 8, 16, requires_grad=True), torch.ones(4, 8, 16)
    weight, bias = torch.ones(16, requires_grad=True), torch.zeros(16, requires_grad=True)
    mean, var, labels = torch.zeros(16), torch.ones(16), torch.zeros(8, dtype=torch.long)
    stats = {"running_mean": mean, "running_var": var, "training": True}
    yield "lif", LIF, (x,), ds, (x,), lambda: snnfast.lif(x, backend=backend)
    yield (
        "norm_lif", NORM_LIF, (x, weight, bias), ds, (x, None, weight, bias, mean, var, mean),
        lambda: snnfast.norm_lif(x, weight=weight, bias=bias, **stats, backend=backend),
    )  # fmt: skip
    # The loss is a number: its Function keeps one gradient.
    loss = lambda: snnfast.twkd_loss(x, labels, alpha=0.0, backend=backend)  # noqa: E731
    yield "twkd_loss", TWKD, (x,), torch.ones(()), (x,), loss


def above(leaves, ds, kept, call) -> tuple[float, float]:
    seed = torch.ones_like(leaves[0])
    full = microseconds(lambda: torch.autograd.grad(call(), leaves, ds))
    bare = microseconds(lambda: torch.autograd.grad(Empty.apply(*kept), leaves, seed))
    return full - bare, bare


def main(backend="cpu") -> None:
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        if backend == "triton":
            import _triton_driver

            stack.enter_context(_triton_driver.installed())
        for name, aim, *case in cases(backend):
            worst, bare = max(above(*case) for _ in range(3))
            print(f"{backend} {name}: {worst:.0f} us above {bare:.0f} (aim: {aim})")


if __name__ == "__main__":
    main(*sys.argv[1:])
