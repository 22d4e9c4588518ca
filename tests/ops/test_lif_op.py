"""What PyTorch and its users meet of ``snnfast.lif``: memory, registration, compilation, autocast,
selection, refusals. What it computes: test_lif.py."""

import math
import os
import subprocess
import sys

import pytest
import torch
from lif_cases import LAYOUTS, grads
from torch.autograd.profiler import record_function

import snnfast
from snnfast.ops.layer import lif_layer
from snnfast.ops.lif import lif


@pytest.mark.parametrize("layout", ["channels_last", "every second step", "expanded"])
def test_dense_steps_are_read_without_a_copy(layout):
    x = LAYOUTS[layout](torch.randn(4, 8, 3, 16, 16))
    with torch.profiler.profile(profile_memory=True) as profile:
        lif(x)
    allocated = sum(e.cpu_memory_usage for e in profile.events() if e.cpu_memory_usage > 0)
    s_bytes = 4 * x.numel()
    assert allocated <= 2 * s_bytes  # the events nest: the op's own and empty_strided's within it
    assert not any("copy" in e.name or "contiguous" in e.name for e in profile.events())


def kept_bytes(x, **layer):
    """Net allocations of a forward whose output is dropped but whose graph is alive, less s."""
    x = x.clone().requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        with record_function("forward"):
            s = lif(x, **layer)
    names = ("[memory]",)
    net = sum(e.cpu_memory_usage for e in profile.events() if e.name in names)
    return net - s.numel() * s.element_size(), s


@pytest.mark.unpoisoned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [1, 4, 8, 9, 16, 17, 100])
def test_kept_for_backward(dtype, steps):
    count = 4096
    x = torch.randn(steps, count).to(dtype)
    extra, s = kept_bytes(x)
    saved = [t for t in s.grad_fn.saved_tensors if t is not None]
    kept = sum(t.numel() * t.element_size() for t in saved)
    floor = x.numel() * x.element_size()
    assert kept - floor == (0 if steps <= 8 else (math.ceil(steps / 8) - 1) * count * 4)
    assert kept - floor <= x.numel() * 4 / 8
    assert extra <= kept - floor  # x itself is the caller's


@pytest.mark.unpoisoned
def test_opcheck():
    x = torch.randn(9, 2, 3, 4)
    v0, rate = torch.randn(2, 3, 4), 1 + torch.rand(3)
    layer = (9, *lif_layer(9, surrogate="atan")._replace(divide=True).pack(), "cpu")
    ops = torch.ops.snnfast
    for state in (0, 1, 2):
        torch.library.opcheck(ops.lif_forward.default, (x, v0, rate, *layer, state, True))
    _, _, borders = ops.lif_forward(x, v0, rate, *layer, 0, True)
    backward = (x, v0, rate, borders, torch.randn_like(x), torch.randn_like(x), *layer, True, True)
    torch.library.opcheck(ops.lif_backward.default, backward)
    channels_last = LAYOUTS["channels_last"](torch.randn(4, 2, 3, 4, 5))
    layer = (4, *lif_layer(4, surrogate="atan").pack(), "cpu")
    torch.library.opcheck(ops.lif_forward.default, (channels_last, None, None, *layer, 0, True))


@pytest.mark.unpoisoned
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_once_for_any_number_of_steps(compiler):
    torch._dynamo.reset()
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(compiler)(graph, example_inputs)

    def network(x, w):
        s, v = lif(x * w, tau=1.7, surrogate="atan", return_state=True)
        return (s * 2).sum() + v.sum()

    compiled = torch.compile(network, backend=counting, fullgraph=True, dynamic=True)
    w = torch.tensor(1.3)
    # T <= 8 keeps no states, and torch tells one kept state from several: three graphs for any T.
    for ranges in ((3, 9, 17), (4, 5, 8, 12, 16, 18, 30, 100)):
        before = len(graphs)
        for steps in ranges:
            x = torch.randn(steps, 4, 6)
            ours, plain = (grads(f, (x, w), None) for f in (compiled, network))
            for a, b in zip(ours, plain):
                torch.testing.assert_close(a, b)
    assert len(graphs) == before


@pytest.mark.unpoisoned
def test_compiled_module_follows_the_backend_block():
    torch._dynamo.reset()
    layer = snnfast.nn.LIF(tau=1.7)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 50)
    expected = layer(x)
    assert torch.equal(compiled(x), expected)
    with snnfast.backend("reference"):
        assert torch.equal(compiled(x), expected)
    with snnfast.backend("cuda"), pytest.raises(Exception, match="cannot be used"):
        compiled(x)


def test_autocast_stays_fused_and_casts_nothing():
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        calls = snnfast.explain(lif, x)
        s, v = lif(x, return_state=True)
        full = lif(x.float())
    assert [name for _, name, _ in calls] == ["cpu"]
    assert s.dtype == torch.bfloat16 and v.dtype == torch.float32 and full.dtype == torch.float32


def test_selection():
    x = torch.randn(4, 8)
    assert snnfast.explain(lif, x)[0][:2] == ("lif", "cpu")
    assert snnfast.explain(lif, x, backend="reference")[0][1] == "reference"
    with snnfast.backend("reference"):
        assert snnfast.explain(lif, x)[0][1:] == ("reference", "asked for by snnfast.backend(...)")
        assert snnfast.explain(lif, x, backend="cpu")[0][1] == "cpu"
        with snnfast.backend("auto"):
            assert snnfast.explain(lif, x)[0][1] == "cpu"
    assert len(snnfast.explain(lambda: [lif(x), lif(x)])) == 2
    assert snnfast.explain(lif, x.bfloat16(), surrogate=snnfast.surrogate.ATan(spiking=False))[0][
        1
    ] == ("reference")
    code = "import torch, snnfast; print(snnfast.explain(snnfast.lif, torch.randn(2, 3))[0][1])"
    environment = os.environ | {"SNNFAST_BACKEND": "reference"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert printed.stdout.strip() == "reference", printed.stderr


X = torch.randn(4, 2, 3)
REFUSED = {
    "x a list": (([1.0],), {}, TypeError, "x must be a tensor, got list"),
    "x int": ((torch.ones(4, 3, dtype=torch.int64),), {}, TypeError, "got int64"),
    "x complex": ((torch.ones(4, 3, dtype=torch.complex64),), {}, TypeError, "got complex64"),
    "x scalar": ((torch.tensor(1.0),), {}, ValueError, "time as its first axis"),
    "v0 dtype": ((X, torch.zeros(2, 3, dtype=torch.float64)), {}, TypeError, "v0 must be float32"),
    "v0 shape": ((X, torch.zeros(3, 2)), {}, ValueError, r"shape \(2, 3\), got \(3, 2\)"),
    "v0 device": ((X, torch.zeros(2, 3, device="meta")), {}, ValueError, "device cpu, got meta"),
    "v0 number": ((X, 0.0), {}, TypeError, "v0 must be a tensor or None, got float"),
    "tau < 1": ((X,), {"tau": 0.9}, ValueError, "tau must be >= 1, got 0.9"),
    "tau nan": ((X,), {"tau": math.nan}, ValueError, "tau must be finite, got nan"),
    "tau str": ((X,), {"tau": "2"}, TypeError, "tau must be a number, got str"),
    "tau bool": ((X,), {"tau": True}, TypeError, "tau must be a number, got bool"),
    "tau tensor < 1": ((X,), {"tau": torch.tensor([2.0, 0.5, 3.0])}, ValueError, ">= 1"),
    "tau tensor inf": ((X,), {"tau": torch.tensor(math.inf)}, ValueError, "finite"),
    "tau tensor dtype": (
        (X,),
        {"tau": torch.tensor(2)},
        TypeError,
        "tau must be float32 for float32 x, got int64",
    ),
    "tau tensor shape": ((X,), {"tau": torch.full((2,), 2.0)}, ValueError, "one value per channel"),
    "tau tensor 2d": ((X,), {"tau": torch.full((2, 3), 2.0)}, ValueError, r"shape \[\] or \[C\]"),
    "tau device": (
        (X,),
        {"tau": torch.tensor(2.0, device="meta")},
        ValueError,
        "tau must be on x's",
    ),
    "both": (
        (X,),
        {"tau": 3.0, "inv_tau": torch.tensor(0.5)},
        ValueError,
        "must not both be given",
    ),
    "both, 2.0": ((X,), {"tau": float("2"), "inv_tau": torch.tensor(0.5)}, ValueError, "both"),
    "inv_tau float": ((X,), {"inv_tau": 0.5}, TypeError, "inv_tau must be a tensor"),
    "inv_tau > 1": ((X,), {"inv_tau": torch.tensor(1.5)}, ValueError, "0..1"),
    "theta -inf": ((X,), {"v_threshold": -math.inf}, ValueError, "v_threshold must be finite"),
    "theta str": ((X,), {"v_threshold": "1"}, TypeError, r"a number or a tensor \[\] or \[C\]"),
    "theta shape": ((X,), {"v_threshold": torch.ones(2)}, ValueError, "v_threshold must .*channel"),
    "theta dtype": ((X,), {"v_threshold": torch.tensor(1)}, TypeError, "v_threshold must be float"),
    "theta values": (
        (X,),
        {"v_threshold": torch.tensor([1.0, math.inf, 1.0])},
        ValueError,
        "v_threshold must be finite, got",
    ),
    "beta list": ((X,), {"beta": [0.5]}, TypeError, r"beta must be a number or a tensor"),
    "beta nan": ((X,), {"beta": math.nan}, ValueError, "beta must be finite"),
    "beta tensor nan": (
        (X,),
        {"beta": torch.tensor(math.nan)},
        ValueError,
        "beta must be finite, got nan",
    ),
    "beta shape": ((X,), {"beta": torch.ones(2)}, ValueError, "beta must .*one value per channel"),
    "beta, tau": (
        (X,),
        {"beta": 0.5, "tau": 3.0},
        ValueError,
        "tau must be 2.0 where beta is given, got 3.0",
    ),
    "beta, inv_tau": (
        (X,),
        {"beta": 0.5, "inv_tau": torch.tensor(0.5)},
        ValueError,
        "inv_tau must be None where beta is given, got a tensor",
    ),
    "beta, decay_input": (
        (X,),
        {"beta": 0.5, "decay_input": False},
        ValueError,
        "decay_input must be True where beta is given, got False",
    ),
    "beta, v_rest": (
        (X,),
        {"beta": 0.5, "v_rest": 0.1},
        ValueError,
        "v_rest must be None where beta is given, got 0.1",
    ),
    "v_rest": ((X,), {"v_rest": torch.ones(3)}, TypeError, "a number or None .* got a float32 ten"),
    "fire": ((X,), {"fire": "<"}, ValueError, "fire must be '>=' or '>', got '<'"),
    "detach_state": ((X,), {"detach_state": 1}, TypeError, "detach_state must be True or False"),
    "by program: tau": ((X,), {"fire": ">", "tau": 0.9}, ValueError, "tau must be >= 1"),
    "by program: both": (
        (X,),
        {"fire": ">", "tau": 3.0, "inv_tau": torch.tensor(0.5)},
        ValueError,
        "must not both be given",
    ),
    "by program: v0": ((X, 0.0), {"fire": ">"}, TypeError, "v0 must be a tensor or None"),
    "time_axis": ((X,), {"time_axis": "last"}, ValueError, "time_axis must be an int or 'merged'"),
    "time_axis flag": ((X,), {"time_axis": True}, ValueError, "time_axis must be an int"),
    "time_axis 3": ((X,), {"time_axis": 3}, ValueError, r"an axis of x, in -3..2, got 3"),
    "time_axis scalar": ((X[0, 0, 0],), {"time_axis": 1}, ValueError, "axis of time, got a scalar"),
    "merged, T": ((X,), {"time_axis": "merged"}, TypeError, "an int where time_axis is 'merged'"),
    "merged, 3": (
        (X,),
        {"time_axis": "merged", "timesteps": 3},
        ValueError,
        r"x must have timesteps \* N on its first axis",
    ),
    "v_reset nan": ((X,), {"v_reset": math.nan}, ValueError, "v_reset must be finite"),
    "decay_input": ((X,), {"decay_input": 1}, TypeError, "decay_input must be True or False"),
    "detach_reset": ((X,), {"detach_reset": None}, TypeError, "detach_reset must be"),
    "surrogate": ((X,), {"surrogate": "relu"}, ValueError, "surrogate must be one of"),
    "surrogate type": ((X,), {"surrogate": torch.relu}, TypeError, "surrogate must be a name"),
    "backend": ((X,), {"backend": "gpu"}, ValueError, "backend must be one of auto"),
    "timesteps": ((X,), {"timesteps": -1}, ValueError, "timesteps must be >= 0"),
    "timesteps float": ((X,), {"timesteps": 4.0}, TypeError, "timesteps must be an int"),
    "return_state": ((X,), {"return_state": "last"}, ValueError, "return_state must be"),
    "cuda on cpu": ((X,), {"backend": "cuda"}, ValueError, "backend 'cuda' cannot be used"),
    "triton on cpu": ((X,), {"backend": "triton"}, ValueError, "backend 'triton' cannot be used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    args, keywords, error, message = REFUSED[case]
    with pytest.raises(error, match=rf"lif: .*{message}"):
        lif(*args, **keywords)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: snnfast.surrogate.ATan(alpha=0.0), ValueError),
        (lambda: snnfast.surrogate.ATan(alpha=math.nan), ValueError),
        (lambda: snnfast.surrogate.ATan(alpha="2"), TypeError),
        (lambda: snnfast.surrogate.QPseudoSpike(alpha=1.0), ValueError),
        (lambda: snnfast.backend("gpu").__enter__(), ValueError),
    ],
)
def test_other_refusals(make, error):
    with pytest.raises(error):
        make()
