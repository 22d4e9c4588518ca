"""The neurons of ``snnfast.neurons``: each against the module of the package that it is taken from,
where one has it, and as a program against the function in a loop."""

import inspect
import pickle
import re

import pytest
import torch
from backends import CPU, GPU, INTERPRETED, REFERENCE, named
from family_cases import CASES, ROWS, as_tensors, inputs, neuron
from held_family import Case, held
from lif_cases import CHARGES
from peer_neurons import PEERS, package

import snnfast
from snnfast import neurons


def over(table):
    ids = [f"{name} {named(options)}".strip() for name, options in table]
    return pytest.mark.parametrize(("name", "options"), table, ids=ids)


def test_each_has_a_row_and_a_module():
    assert list(ROWS) == neurons.__all__
    modules = [m for m in vars(snnfast.nn).values() if inspect.isclass(m)]
    own = {getattr(m, "_definition", neurons.lif) for m in modules}
    assert own == {neuron(name) for name in neurons.__all__}


def gradients(results, leaves) -> list[torch.Tensor]:
    """Those of the leaves along random directions, 0 where one has no part."""
    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results]
    along = [a.to(r.device, r.dtype) for a, r in zip(along, results, strict=True)]
    found = torch.autograd.grad(results, leaves, along, allow_unused=True)
    found = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]
    return [g.cpu() for g in found]


def close(ours, theirs, bound: float) -> None:
    """Relative to the value and to the largest one."""
    for a, b in zip(ours, theirs, strict=True):
        scale = 1 + b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=10 * bound, atol=bound * scale)


def flat(s, states) -> tuple:
    return (s, *(states if isinstance(states, tuple) else (states,)))


# On a backend, as in a loop

ROUGH = {"exp", "log", "tanh", "sigmoid", "pow"}
"""What two libraries round differently."""


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("kind", ["numbers", "channels"])
@over(CASES)
def test_equals_the_loop(backend, name, options, kind):
    """In float64, from any state: the same values, and autograd's gradients."""
    definition, x = neuron(name), inputs(name, (11, 2, 4, 3), torch.float64)
    states = [torch.rand_like(x[0]) for _ in definition.states]
    parameters = definition.defaults | options
    if kind == "channels":
        parameters = as_tensors(name, options, torch.float64, channels=4)
    tensors = {k: p for k, p in parameters.items() if isinstance(p, torch.Tensor)}

    def run(where):
        leaves = [t.detach().requires_grad_() for t in (x, *states, *tensors.values())]
        first, rest = leaves[1 : 1 + len(states)], leaves[1 + len(states) :]
        own = parameters | dict(zip(tensors, rest, strict=True))
        call = {"states": tuple(first), "return_state": True, "backend": where.name, **own}
        results = flat(*definition(leaves[0], **call))
        return results, gradients(results, leaves)

    for ours, theirs, bound in zip(run(backend), run(REFERENCE), (1e-13, 1e-10), strict=True):
        close(ours, theirs, bound)


@over([case for case in CASES if not any("detach" in name for name in case[1])])
def test_gradcheck_of_the_smooth_twin(name, options):
    definition, smooth = neuron(name), snnfast.surrogate.Sigmoid(alpha=0.5, spiking=False)
    x = inputs(name, (3, 1, 3), torch.float64).requires_grad_()
    states = [torch.rand_like(x[0]).requires_grad_() for _ in definition.states]

    def twin(x, *states):
        return definition(x, states=states, surrogate=smooth, backend="reference", **options)

    assert torch.autograd.gradcheck(twin, (x, *states), atol=1e-5)


def same_bits(name, options, found, wanted) -> None:
    nodes = neuron(name).listing(**options).step.forward.nodes
    if ROUGH & {node.op for node in nodes}:
        apart = ~torch.isclose(found[0].cpu(), wanted[0], rtol=1e-5, atol=1e-5)
        assert apart.any(0).float().mean() < 1e-3
    else:
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.backends(*CPU, *GPU)
@over(CASES)
def test_same_bits_in_float32(backend, name, options):
    x = inputs(name, (12, 3, 4, 700))
    call = {"return_state": True, **options}
    found = flat(*neuron(name)(x.to(backend.device), backend=backend.name, **call))
    wanted = flat(*neuron(name)(x, backend="reference", **call))
    same_bits(name, options, found, wanted)


@pytest.mark.backends(INTERPRETED, *GPU)
@pytest.mark.parametrize("name", ROWS)
def test_on_a_gpu(backend, name):
    """The defaults, as tensors [C]: values and gradients."""
    found = held(Case(name, {}, 11, 400, "channels"), backend.name, backend.device)
    assert not found.fails, found


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
    call = {"return_state": True, "backend": "reference", "surrogate": peer.surrogate}
    ours = flat(*definition(leaves[0], **call, **parameters))
    assert name == "liaf" or 0.01 < (ours[0] != 0).float().mean() < 0.99
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b), (a - b).abs().max()
    close(gradients(ours, leaves), gradients(theirs, leaves), 1e-5)


@pytest.mark.parametrize("name", ["leaky", "synaptic"])
def test_at_the_threshold(name):
    """No spike there, and the surrogate's gradient all the same."""
    x = (4 * inputs(name)).round().div(4).requires_grad_()
    numbers = {"leaky": {"beta": 0.5}, "synaptic": {"alpha": 0.5, "beta": 0.5}}[name]
    s, states = neuron(name)(
        x, surrogate="atan", return_state="all", backend="reference", **numbers
    )
    assert (flat(s, states)[-1] == 1.0).any()
    theirs = PEERS[name].run(x, neuron(name).defaults | numbers)[0]
    assert torch.equal(s, theirs)
    close(gradients([s], [x]), gradients([theirs], [x]), 1e-6)


def test_what_depends_on_parameters_alone_is_no_part_of_a_step():
    beta = torch.tensor(0.9)
    for mechanism in ("zero", "none"):
        steps = [
            neurons.leaky.listing(reset_mechanism=mechanism, **of).step
            for of in ({}, {"beta": beta})
        ]
        assert steps[0].forward.operations() == steps[1].forward.operations()


def test_spikes_are_known_as_such():
    """By their program, without a look at them: they can be kept as bits."""
    programs = {name: neuron(name).program.step.forward for name in ROWS}
    graded = {name for name, program in programs.items() if not program.fires(program.results[0])}
    assert graded == {"ilif", "liaf", "ternary_lif"}


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
    close(gradients([s], [x]), gradients([torch.stack(spikes)], [x]), 1e-12)


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
        close(gradients(found, [ours]), gradients(wanted, [definition]), 1e-5)


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
        found = gradients([s], [x, *names.values()])
        wanted = gradients([r], [x, *(getattr(node, name) for name in names)])
        wanted = [b.sum(0) if b.dim() > a.dim() else b for a, b in zip(found, wanted, strict=True)]
        close(found, wanted, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tau_per_neuron(dtype):
    """As neurons that are channels, each with its tau: spikes and gradients of ``snnfast.lif``."""
    layer = snnfast.nn.HeterogeneousLIF((3, 4), tau=3.0, surrogate="atan")
    assert list(layer.state_dict()) == ["w"]
    assert torch.allclose(layer.w.sigmoid(), torch.tensor(1 / 3))
    torch.nn.init.normal_(layer.w)
    x = inputs("heterogeneous_lif", (12, 5, 3, 4)).to(dtype).requires_grad_()
    w = layer.w.detach().flatten().requires_grad_()
    r = snnfast.lif(x.flatten(2), inv_tau=w.sigmoid(), surrogate="atan").view(x.shape)
    s = layer(x)
    assert torch.equal(s, r) and 0.01 < s.float().mean() < 0.99
    ds = torch.randn(s.shape).to(dtype)
    found = torch.autograd.grad(s, [x, layer.w], ds)
    wanted = torch.autograd.grad(r, [x, w], ds)
    close([found[0], found[1].flatten()], wanted, 1e-5 if dtype == torch.float32 else 1e-2)
    with snnfast.streaming(layer), torch.no_grad():
        assert torch.equal(torch.cat([layer(part) for part in x.split(5)]), s)
    assert torch.equal(layer(x[0], timesteps=3), layer(x[:1].expand(3, *x.shape[1:])))


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
        (lambda: snnfast.nn.HeterogeneousLIF((2,))(X[:, None]), ValueError,
         "HeterogeneousLIF: x must have neurons [2] behind time and batch, got [3]"),
        (lambda: snnfast.nn.HeterogeneousLIF(tau=1.0), ValueError,
         "HeterogeneousLIF: tau must be > 1, got 1.0"),
        (lambda: snnfast.nn.KLIF(k="1"), TypeError, "KLIF: k must be a number, got str"),
        (lambda: snnfast.nn.Leaky(tau=2.0), TypeError, "leaky: arguments must be among beta, "),
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)  # fmt: skip
def test_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
