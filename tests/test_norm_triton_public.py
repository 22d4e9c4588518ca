"""snnfast.norm_lif on the Triton backend, under Triton's interpreter: statistics, forward, backward
and the op's contract. The interpreter is started as in test_norm_triton_interpreter.py, and the
cases are those of test_norm_lif.py.
"""

import functools

import pytest
import torch
from test_norm_lif import block, channels_last, double, relative, run
from test_norm_triton_interpreter import report, run_interpreted

import snnfast
from snnfast import norm_lif

# [T, B, C, ...]
SHAPES = [(4, 3, 5, 7, 3), (4, 16, 24), (9, 2, 10, 4, 4), (3, 1, 1, 33)]
NEURONS = [
    {},
    {"v_reset": None, "detach_reset": True, "surrogate": "atan", "tau": 1.7},
    {"decay_input": False, "tau": 1.25, "surrogate": "rect", "v_reset": -0.1},
]


def compare(shape, layout, residual, training, dtype=torch.float32, states=False, rate=None, seed=0,
            **neuron):  # fmt: skip
    """Everything against the reference in float64, with what the reference loses in float32."""
    found = {}
    for name in ("triton", "reference", "exact"):
        arguments, ds = block(shape, dtype, residual, layout, seed)
        g = torch.Generator().manual_seed(1)
        v0, dv = (torch.randn(shape[1:], generator=g) for _ in range(2))
        tau = 1.1 + 3 * torch.rand((shape[2],), generator=g)
        more = {"v0": v0, "return_state": True} if states else {}
        if rate is not None:
            more[rate] = (tau if rate == "tau" else 1 / tau).requires_grad_()
        wide = torch.float32
        if name == "exact":
            arguments, ds, dv, wide = double(arguments), ds.double(), dv.double(), torch.float64
            more = {k: v if k == "return_state" else v.detach().double() for k, v in more.items()}
        more = {k: v.requires_grad_() if k != "return_state" else v for k, v in more.items()}
        backend = "triton" if name == "triton" else "reference"
        found[name] = run(arguments, ds, dv if states else None, training=training,
                          backend=backend, **more, **neuron)  # fmt: skip
        assert wide == torch.float64 or found[name][0][0].dtype == dtype
    (ours, grads, after), (single, own, _), (exact, want, later) = found.values()
    for s in (ours[0], single[0]):
        assert torch.equal(s.double(), exact[0]), "choose another seed: a spike is on the threshold"
    if not training:
        assert not states or torch.equal(ours[1], single[1])
    elif states:
        torch.testing.assert_close(ours[1].double(), exact[1], rtol=1e-5, atol=1e-5)
    unit = {torch.float32: 1e-7, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    for name in want:
        error, torchs = relative(grads[name], want[name]), relative(own[name], want[name])
        floor = 2 * unit if name in ("y", "residual") else 1e-6  # sums, of terms that cancel
        assert error <= max(2 * torchs, floor), f"{name}: {error:.3g}, PyTorch {torchs:.3g}"
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(after[name].double(), later[name], rtol=1e-6, atol=1e-7)


def running_statistics(shape, layout, offset):
    """As torch's, relative to the spread of the values; three updates."""
    arguments, _ = block(shape, torch.float32, layout=layout, offset=offset)
    y = arguments.pop("y").detach()
    mean, var = (arguments[f"running_{n}"].double() for n in ("mean", "var"))
    for _ in range(3):
        flat = y.double().flatten(0, 1)
        torch.nn.functional.batch_norm(flat, mean, var, training=True, momentum=0.3)
        norm_lif(y, training=True, momentum=0.3, backend="triton", **arguments)
    torch.testing.assert_close(arguments["running_mean"].double(), mean, rtol=2e-7, atol=1e-6)
    torch.testing.assert_close(arguments["running_var"].double(), var, rtol=2e-6, atol=0)


def same_spikes():
    """Evaluation: the spikes of all backends are the same, bit for bit."""
    for layout in (lambda y: y, channels_last):
        arguments, _ = block((5, 3, 24, 9, 7), torch.float32, True, layout)
        spikes = [
            norm_lif(training=False, tau=1.7, backend=name, **arguments)
            for name in ("triton", "cpu", "reference")
        ]
        assert torch.equal(spikes[0], spikes[1]) and torch.equal(spikes[0], spikes[2])
        assert 0.05 < spikes[0].mean() < 0.95


def same_bits():
    """A second run gives the same bits of everything."""
    results = []
    for _ in range(2):
        arguments, ds = block((4, 3, 5, 7, 3), torch.float32, True)
        (s,), grads, after = run(arguments, ds, training=True, backend="triton")
        results.append([s, *grads.values(), after["running_mean"], after["running_var"]])
    assert all(map(torch.equal, *results))


def static(training):
    """One input for all steps is the repeated one."""
    arguments, ds = block((1, 3, 6, 5, 4), torch.float32)
    ds = torch.randn(5, *ds.shape[1:], generator=torch.Generator().manual_seed(2))
    results = []
    for backend in ("triton", "reference"):
        fresh = {n: t.detach().clone() for n, t in arguments.items() if t is not None}
        y = fresh.pop("y")[0].requires_grad_()
        s = norm_lif(y, training=training, timesteps=5, backend=backend, **fresh)
        results.append([s, torch.autograd.grad(s, y, ds)[0], fresh["running_var"]])
    (s, *ours), (t, *others) = results
    assert torch.equal(s, t)
    for a, b in zip(ours, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def contract():
    """torch.library.opcheck of every op, with a residual, and of a static input."""
    from snnfast.ops.layer import lif_layer

    for residual, timesteps in ((True, None), (False, 3)):
        arguments, ds = block((3, 2, 5, 3, 2), torch.float32, residual)
        y, r = (t if t is None else t.detach() for t in (arguments["y"], arguments["residual"]))
        static = timesteps is not None
        y = y[0].contiguous() if static else y
        layer = lif_layer(3, surrogate="atan", static=static)
        layer = (3, *layer.pack(), "triton")
        ops, check, v = torch.ops.snnfast, torch.library.opcheck, torch.randn(5)
        norm, none = (v, v, v), (None, None)
        norms = (0.1, 72, 1e-5, static, "triton")
        check(ops.norm_stats.default, (y, v, v.clone(), v.clone(), *norms))
        check(ops.norm_prepare.default, (v, v.abs(), None, 1e-5, "triton"))
        check(ops.norm_finish.default, (torch.randn(2, 5), v, v, 72, "triton"))
        check(ops.norm_lif_forward.default, (y, r, *norm, *none, *layer, 1, True))
        gradients = (*none, torch.empty(0), ds, None)
        arguments = (y, r, *norm, v, *gradients, *layer, 72, not static, False, False)
        check(ops.norm_lif_backward.default, arguments)
        check(
            ops.norm_lif_dy.default,
            (y, *norm, *gradients, v, v, v, *layer),
        )
        dx = torch.randn_like(y)
        check(ops.norm_dy.default, (y, dx, v, v, v, v, static, "triton"))


def compiled():
    """torch.compile without a graph break gives what the call itself gives, whatever the sizes."""

    def f(y, arguments):
        return norm_lif(y, training=True, backend="triton", **arguments)

    traced = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((4, 3, 5, 6, 2), (5, 2, 5, 4, 3)):
        results = []
        for call in (traced, f):
            arguments, ds = block(shape, torch.float32)
            y = arguments.pop("y")
            s = call(y, arguments)
            grads = torch.autograd.grad(s, (y, arguments["weight"]), ds)
            results.append((s, *grads, arguments["running_mean"]))
        assert all(map(torch.equal, *results))


def explained():
    """The backend asked for is the one that runs, and nothing is said of a missing norm_lif."""
    arguments, _ = block((2, 2, 3, 4), torch.float32)
    call = functools.partial(norm_lif, training=True, backend="triton", **arguments)
    ((op, backend, reason),) = snnfast.explain(call)
    assert (op, backend, reason) == ("norm_lif", "triton", "asked for by the backend argument")


def cases():
    """Name -> function and arguments."""
    found = {}
    for i, shape in enumerate(SHAPES):
        for last in (False, True) if len(shape) > 4 else (False,):
            for training in (True, False):
                neuron = NEURONS[(i + last + training) % len(NEURONS)]
                arguments = dict(shape=shape, layout=channels_last if last else lambda y: y,
                                 residual=(i + training) % 2 == 0, training=training)  # fmt: skip
                name = f"{shape} last={last} training={training}"
                found[name] = (compare, arguments | neuron)
    plain = dict(shape=(4, 3, 5, 7, 3), training=True)
    for last, rate in ((False, "tau"), (True, "inv_tau"), (False, "inv_tau"), (True, "tau")):
        layout = channels_last if last else lambda y: y
        for T, residual in ((4, True), (9, False)):
            more = dict(shape=(T, 2, 6, 5, 3), layout=layout, residual=residual, training=not last)
            found[f"{rate} and states T={T} last={last}"] = (
                compare, more | dict(states=True, rate=rate)
            )  # fmt: skip
    for dtype in (torch.bfloat16, torch.float16):
        for residual in (False, True):
            layout = channels_last if residual else lambda y: y
            found[f"{dtype} residual={residual}"] = (
                compare, plain | dict(dtype=dtype, residual=residual, layout=layout)
            )  # fmt: skip
    for shape, offset in (((4, 3, 6, 5, 5), 1e4), ((3, 30, 10), 1e4), ((2, 3, 5, 300), 0.0)):
        arguments = dict(shape=shape, offset=offset, layout=channels_last)
        found[f"running statistics {shape} offset={offset}"] = (running_statistics, arguments)
    for training in (True, False):
        found[f"static training={training}"] = (static, {"training": training})
    for run_one in (same_spikes, same_bits, contract, compiled, explained):
        found[run_one.__name__.replace("_", " ")] = (run_one, {})
    return found


@pytest.fixture(scope="module")
def outcomes():
    """Name -> None, or the traceback of the case."""
    return run_interpreted(__file__)


@pytest.mark.parametrize("name", cases())
def test_public(outcomes, name):
    assert outcomes[name] is None, outcomes[name]


def runs():
    return [(name, call, arguments) for name, (call, arguments) in cases().items()]


if __name__ == "__main__":
    report(runs())
