"""The old releases leak as V (1 - 1/tau) + X where snnfast has V - (V - r)/tau + X: each compatible
module is bit-equal to its release, also where inputs are multiples of 1/20."""

import copy
import warnings

import jelly_pairs as pairs
import pytest
import torch

import snnfast

TAUS = (1.25, 1.5, 3.0, 10.0)
KINDS = [("IFNode", None), *(("LIFNode", tau) for tau in TAUS), ("ParametricLIFNode", 3.0)]


@pytest.mark.parametrize("version", pairs.VERSIONS)
@pytest.mark.parametrize(("kind", "tau"), KINDS, ids=lambda v: str(v))
@pytest.mark.parametrize("v_reset", [0.0, None, -0.1])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_spikes_and_potentials_are_equal(version, kind, tau, v_reset, training):
    name = {"LIFNode": "tau", "ParametricLIFNode": "init_tau"}.get(kind)
    for decay_input in (True, False) if name else (None,):
        leak = {name: tau, "decay_input": decay_input} if name else {}
        theirs, ours = pairs.both(version, kind, v_reset=v_reset, **leak)
        if version == "0.0.0.0.14":
            theirs.store_v_seq = ours.store_v_seq = True
        theirs.train(training), ours.train(training)
        for grid in ("random", "grid"):
            theirs.reset(), ours.reset()
            for seed in range(2):  # the second goes on where the first one ended
                x = pairs.inputs(grid, seed=seed)
                with torch.no_grad():
                    assert torch.equal(ours(x), theirs(x)), (decay_input, grid)
                assert torch.equal(ours.v, theirs.v)
                assert torch.equal(ours.v_seq, theirs.v_seq)


@pytest.mark.parametrize("version", pairs.VERSIONS)
@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "ParametricLIFNode"])
@pytest.mark.parametrize("surrogate", ["Sigmoid", "ATan", "PiecewiseQuadratic"])
@pytest.mark.parametrize(("v_reset", "detach_reset"), [(0.0, False), (None, True), (-0.1, True)])
def test_gradients_are_as_exact_as_theirs(version, kind, surrogate, v_reset, detach_reset):
    leaks = [{}] if kind == "IFNode" else [{"decay_input": True}, {"decay_input": False}]
    for leak in leaks:
        theirs, ours = pairs.both(
            version, kind, surrogate, v_reset=v_reset, detach_reset=detach_reset, **leak
        )
        exact = copy.deepcopy(theirs).double()
        x = pairs.inputs("random")
        s, _, mine = pairs.run(ours, x)
        others, _, gradients = pairs.run(theirs, x)
        doubles, _, true = pairs.run(exact, x.double())
        assert torch.equal(s, others) and torch.equal(s.double(), doubles)
        pairs.close(mine, gradients, true)


@pytest.mark.parametrize("kind", ["IFNode", "LIFNode"])
def test_in_evaluation_no_surrogate_is_asked(kind):
    """Those of 0.0.0.0.14 fire without it, and nothing flows back."""
    leak = {} if kind == "IFNode" else {"tau": 3.0, "decay_input": False}
    theirs, ours = pairs.both("0.0.0.0.14", kind, **leak)
    for node in (theirs, ours):
        node.surrogate_function = torch.nn.Softsign()  # whose values are no spikes
    theirs.eval(), ours.eval()
    x = pairs.inputs("grid").requires_grad_()
    s = ours(x)
    assert torch.equal(s, theirs(x)) and torch.equal(ours.v, theirs.v)
    assert not s.requires_grad


@pytest.mark.parametrize("version", pairs.VERSIONS)
def test_the_profiles_differ_on_the_grid(version):
    """Else the tests above could not see which one was taken."""
    _, ours = pairs.both(version, "LIFNode", tau=3.0, decay_input=False, v_reset=None)
    x = pairs.inputs("grid", shape=(16, 4096))
    assert not torch.equal(ours(x), snnfast.lif(x, tau=3.0, decay_input=False, v_reset=None))


@pytest.mark.parametrize("version", pairs.VERSIONS)
@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("values", [(torch.inf, -torch.inf), (-torch.inf, -torch.inf)])
def test_in_evaluation_an_infinite_input_ends_as_theirs_does(version, accelerated, values):
    """Networks that divide by a firing rate give one before they are trained: their reset makes NaN
    of it, and the neuron is silent from then on."""
    theirs, ours = pairs.both(version, "LIFNode")
    if accelerated:
        ours = copy.deepcopy(theirs)
        snnfast.accelerate(ours)
    x = pairs.inputs("grid")
    x[1, 0], x[2, 1, 2] = values
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(ours.eval()(x), theirs.eval()(x))
    torch.testing.assert_close(ours.v, theirs.v, rtol=0, atol=0, equal_nan=True)
    assert ours.v.isnan().any()


def test_in_evaluation_a_large_input_is_none_that_is_infinite():
    """Though the sum of its values is."""
    theirs, _ = pairs.both("0.0.0.0.14", "LIFNode")
    ours = copy.deepcopy(theirs)
    ours.__class__ = type("Own", (type(theirs),), {})  # one that nothing was said of yet
    snnfast.accelerate(ours)
    x = torch.full((4, 2, 3), 3e38)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ours.eval()(x), theirs.eval()(x))
