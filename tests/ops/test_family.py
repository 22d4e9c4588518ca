"""The neurons of ``snnfast.neurons``: each against the module of the package that it is taken from,
where one has it, and as a program against the function in a loop."""

import inspect
import pickle
import re

import pytest
import torch
from backends import CPU, GPU, REFERENCE, named
from family_cases import CASES, ROWS, as_tensors, inputs, neuron
from lif_cases import CHARGES
from peer_neurons import PEERS, package

import snnfast
from snnfast import neurons
from snnfast.program.evaluate import evaluate


def over(table):
    ids = [f"{name} {named(options)}".strip() for name, options in table]
    return pytest.mark.parametrize(("name", "options"), table, ids=ids)


def test_each_has_a_row_and_a_module():
    assert list(ROWS) == neurons.__all__
    modules = [m for m in vars(snnfast.nn).values() if inspect.isclass(m)]
    own = {getattr(m, "_definition", neurons.lif) for m in modules}
    assert own == {neuron(name) for name in neurons.__all__}


def gradients(results, leaves, seed=0):
    """Those of the leaves along random directions."""
    generator = torch.Generator().manual_seed(seed)
    along = [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results]
    along = [a.to(r.dtype) for a, r in zip(along, results, strict=True)]
    return torch.autograd.grad(results, leaves, along, allow_unused=True)


# As a program


def run_program(definition, x, states, parameters, surrogate):
    """(outputs, states after the last step, gradients) of the programs alone, as ``gradients`` has
    them for the outputs and the last states."""
    tensors = [p for p in parameters.values() if isinstance(p, torch.Tensor)]
    listing = definition.listing(**parameters)
    step, params = listing.step, tensors
    if listing.prelude.nodes:
        params = list(evaluate(listing.prelude, {"param": tensors}))
    fixed = [p.detach() for p in params]
    every, outputs = [states], []
    for x_t in x:
        leaves = {"input": [x_t], "state": every[-1], "param": fixed}
        s, *after = (x_t * 0 + r for r in evaluate(step.forward, leaves))
        every.append(after)
        outputs.append(s)
    outputs = torch.stack(outputs)
    generator = torch.Generator().manual_seed(0)
    ds, *dstates = (
        torch.randn(r.shape, generator=generator, dtype=torch.float64)
        for r in (outputs, *every[-1])
    )
    dx, dparams = [], [torch.zeros_like(p) for p in fixed]
    for t in reversed(range(len(x))):
        leaves = {"input": [x[t]], "state": every[t], "param": fixed}
        leaves |= {"dout": [ds[t]], "dstate": dstates}
        found = [
            x[t] * 0 + (0 if g is None else g) for g in evaluate(step.adjoint, leaves, surrogate)
        ]
        dx.insert(0, found[0])
        dstates = found[1 : 1 + len(states)]
        dparams = [d + g.sum() for d, g in zip(dparams, found[1 + len(states) :], strict=True)]
    pairs = [(p, d) for p, d in zip(params, dparams, strict=True) if p.requires_grad]
    given = ()
    if pairs:
        hoisted, along = zip(*pairs, strict=True)
        given = torch.autograd.grad(hoisted, tensors, along, allow_unused=True)
    return outputs, every[-1], [torch.stack(dx), *dstates, *given]


@pytest.mark.parametrize("kind", ["numbers", "tensors"])
@over(CASES)
def test_the_program_is_the_function(name, options, kind):
    """In float64, on any first state: the same values, and autograd's gradients."""
    definition = neuron(name)
    surrogate = snnfast.surrogate.resolve("sigmoid")
    x = inputs(name, (7, 2, 3), torch.float64).requires_grad_()
    states = [torch.rand_like(x[0]).requires_grad_() for _ in definition.states]
    parameters = definition.defaults | options
    if kind == "tensors":
        parameters = as_tensors(name, options, torch.float64)
    outputs, last = definition(
        x, states=tuple(states), return_state=True, backend="reference", **parameters
    )
    last = last if isinstance(last, tuple) else (last,)
    tensors = [p for p in parameters.values() if isinstance(p, torch.Tensor)]
    wanted = gradients((outputs, *last), (x, *states, *tensors))
    with torch.no_grad():
        plain = [v.clone() for v in states]
    found = run_program(definition, x.detach(), plain, parameters, surrogate)
    assert torch.equal(outputs, found[0])
    for a, b in zip(last, found[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(wanted, found[2], strict=True):
        if a is None:  # not part of the step
            assert b is None or not b.any()
            continue
        scale = 1 + a.abs().max().item()
        torch.testing.assert_close(
            a, torch.zeros_like(a) if b is None else b, rtol=1e-9, atol=1e-9 * scale
        )


# As in the packages that they come from


def has_peer(name, options) -> bool:
    return name in PEERS and PEERS[name].has(neuron(name).defaults | options)


@over([case for case in CASES if has_peer(*case)])
def test_equals_the_peer(name, options):
    """Bit for bit in float32, and gradients as near as two orders of summing are."""
    definition, peer = neuron(name), PEERS[name]
    parameters = definition.defaults | options
    if peer.numbers is not None:
        parameters = as_tensors(name, options, but=peer.numbers)
    leaves = [p for p in parameters.values() if isinstance(p, torch.Tensor)]
    leaves.insert(0, inputs(name).requires_grad_())
    theirs = peer.run(leaves[0], dict(parameters))
    s, states = definition(
        leaves[0], return_state=True, backend="reference", surrogate=peer.surrogate, **parameters
    )
    ours = (s, *(states if isinstance(states, tuple) else (states,)))
    assert name == "liaf" or 0.01 < (ours[0] != 0).float().mean() < 0.99
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b), (a - b).abs().max()
    wanted = gradients(theirs, leaves)
    for a, b in zip(gradients(ours, leaves), wanted, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * (1 + b.abs().max().item()))


# As they are written


@pytest.mark.parametrize("detach", [False, True])
def test_adaptive_lif_is_the_papers(detach):
    """Bellec et al. 2018, with V, b and the spikes of the step before, which reset undecayed."""
    decay, rho, beta, theta = 0.95, 0.9, 1.8, 1.0
    x = inputs("adaptive_lif", dtype=torch.float64).requires_grad_()
    v = b = z = torch.zeros_like(x[0])
    spikes = []
    for x_t in x:
        v = decay * v + (1 - decay) * x_t - (theta + beta * b) * z
        b = rho * b + (1 - rho) * z
        z = snnfast.spike(v - (theta + beta * b))
        spikes.append(z)
        z = z.detach() if detach else z
    s = neurons.adaptive_lif(x, rho=rho, detach_reset=detach, backend="reference")
    assert torch.equal(s, torch.stack(spikes)) and 0.01 < s.mean() < 0.5
    (wanted,), (found,) = gradients([torch.stack(spikes)], [x]), gradients([s], [x])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.backends(REFERENCE, *CPU, *GPU)
@pytest.mark.parametrize("detach", [False, True])
def test_lif_is_what_is_tuned(backend, detach):
    """``snnfast.lif`` against the definition, bit for bit, and its gradients; that all of its
    kernels give the same bits is for test_lif.py."""
    for charge in [*CHARGES, {"inv_tau": torch.tensor(0.3)}]:
        call = {**charge, "detach_reset": detach, "return_state": "all"}
        x = 2 * torch.randn(9, 3, 41)
        ours, definition = x.to(backend.device).requires_grad_(), x.requires_grad_()
        moved = {k: v.to(backend.device) if k == "inv_tau" else v for k, v in call.items()}
        found = snnfast.lif(ours, backend=backend.name, **moved)
        wanted = neurons.lif(definition, backend="reference", **call)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True)), charge
        found = gradients([t.cpu() for t in found], [ours])
        wanted = gradients(wanted, [definition])
        torch.testing.assert_close(found[0].cpu(), wanted[0], rtol=1e-4, atol=1e-5)


# As modules


def family():
    return [m for m in vars(snnfast.nn).values() if hasattr(m, "_definition")]


@pytest.mark.parametrize("module", family(), ids=lambda m: m.__name__)
def test_a_module_is_its_function(module):
    name = module._definition.name
    x = inputs(name, (5, 2, 3, 4))
    layer = pickle.loads(pickle.dumps(module(surrogate="atan", backend="reference")))
    whole = layer(x)
    assert torch.equal(whole, neuron(name)(x, backend="reference"))
    with snnfast.streaming(layer):
        assert torch.equal(torch.cat([layer(x[:2]), layer(x[2:])]), whole)
    if name in PEERS:
        assert module().surrogate == snnfast.surrogate.resolve(PEERS[name].surrogate)
    for option in ROWS[name].options:
        wanted = neuron(name)(x, backend="reference", **option)
        assert torch.equal(module(backend="reference", **option)(x), wanted), option


def test_what_is_learned_is_named_as_in_spikingjelly():
    theirs = package("spikingjelly.activation_based.neuron")
    x = inputs("glif", (6, 2, 3, 4, 5)).requires_grad_()
    pairs = []
    node, layer = theirs.KLIFNode(step_mode="m"), snnfast.nn.KLIF(backend="reference")
    node.k.data.fill_(1.3)
    layer.load_state_dict(node.state_dict())
    pairs.append((node, layer))
    node = theirs.GatedLIFNode(T=6, inplane=3)
    layer = snnfast.nn.GLIF(channels=3, backend="reference")
    state = node.state_dict()
    state["conduct"] = state["conduct"][0]  # one for all steps
    layer.load_state_dict(state)
    pairs.append((node, layer))
    for node, layer in pairs:
        r, s = node(x), layer(x)
        assert torch.equal(s, r) and 0.01 < s.mean() < 0.99
        names = dict(layer.named_parameters())
        wanted = gradients([r], [x, *(getattr(node, name) for name in names)])
        for a, b in zip(gradients([s], [x, *names.values()]), wanted, strict=True):
            b = b if b.shape == a.shape else b.sum(0)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max().item()))


# What is refused

X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: neurons.leaky(X, reset_mechanism="hard"), ValueError,
         "leaky: reset_mechanism must be 'subtract', 'zero' or 'none', got 'hard'"),
        (lambda: neurons.alpha(X, reset_mechanism=None), ValueError,
         "alpha: reset_mechanism must be 'subtract', 'zero' or 'none', got None"),
        (lambda: neurons.alpha(X, alpha=0.8), ValueError,
         "alpha: alpha must be greater than beta, got 0.8 and 0.8"),
        (lambda: neurons.liaf(X, activation="selu"), ValueError,
         "liaf: activation must be one of 'relu', 'sigmoid', 'tanh', got 'selu'"),
        (lambda: neurons.ilif(X, levels=0), ValueError, "levels must be an int >= 1, got 0"),
        (lambda: snnfast.nn.GLIF(gamma=1.0), ValueError, "GLIF: gamma must be within 0 .. 1, got"),
        (lambda: snnfast.nn.GLIF(channels=0), ValueError, "GLIF: channels must be"),
        (lambda: snnfast.nn.KLIF(k="1"), TypeError, "KLIF: k must be a number, got str"),
        (lambda: snnfast.nn.Leaky(tau=2.0), TypeError, "leaky: arguments must be among beta, "),
    ],
    ids=str,
)  # fmt: skip
def test_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
