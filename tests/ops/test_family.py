"""The neurons of ``snnfast.neurons``: each against the module of the package that it is taken from,
where one has it, and as a program against the function in a loop."""

import inspect

import pytest
import torch
from backends import named
from family_cases import CASES, ROWS, as_tensors, inputs, neuron
from peer_neurons import PEERS

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
