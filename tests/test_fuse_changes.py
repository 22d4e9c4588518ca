"""What is done to a fused model, and calls that are not those it was fused for."""

import copy
import gc
import weakref

import pytest
import torch
from fuse_cases import SIDE, Custom, build, data, ops_of
from torch import nn

import snnfast
from snnfast.nn import ParametricLIF, fuse

pytestmark = pytest.mark.filterwarnings("error:fuse")


def test_a_replaced_module_is_no_longer_held():
    model = fuse(build("folded"))
    gc.disable()
    try:
        for holder, name in ((model, "1"), (model[0].layers, "1"), (model, "2")):
            old = weakref.ref(holder[int(name)])
            holder[int(name)] = copy.deepcopy(holder[int(name)])
            assert old() is None
    finally:
        gc.enable()


def changed(model, change, why):
    """The fused model, changed as ``model`` is: it runs unfused, says why, and is as the model."""
    fused = fuse(model)
    change(model), change(fused)
    with pytest.warns(UserWarning, match=f"runs unfused: .*{why}"):
        ours = fused(data())
    assert torch.equal(ours, model(data()))
    return fused


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.bn1.register_forward_hook(lambda m, i, o: 2 * o), "has hooks"),
        (lambda m: m.lif2.register_forward_hook(lambda m, i, o: 2 * o), "has hooks"),
        (lambda m: setattr(m, "add", "none"), "an attribute"),
        (lambda m: setattr(m, "bn1", nn.Identity()), "an attribute"),
        (lambda m: setattr(m.bn1, "momentum", 2.0), "momentum must be"),
    ],
)
def test_changes_after_fusing_are_seen(change, why):
    model = build("after").double()
    fused = changed(model, change, why)
    fuse(fused, inplace=True)  # anew, and warns no more
    assert torch.equal(fused(data()), model(data()))


def test_changes_within_an_inlined_module_are_seen():
    changes = {
        "hook": lambda m: m[0].register_forward_hook(lambda m, i, o: 2 * o),
        "attribute": lambda m: m[0].layers.append(nn.ReLU()),
        "training mode": lambda m: m[0].eval(),
        "submodule": lambda m: snnfast.nn.checkpoint_spikes(m[0]),
    }
    for why, change in changes.items():
        changed(build("folded").double(), change, why)


def test_calls_that_the_op_cannot_take_run_unfused():
    def run(model, x, why):
        model = model.double()
        fused = fuse(model)
        with pytest.warns(UserWarning, match=f"runs unfused: .*{why}"):
            ours = fused(x)
        assert torch.equal(ours, model(x))

    x = data()[:, 0]
    per_channel = ParametricLIF(channels=SIDE)
    with torch.no_grad():
        per_channel.w.copy_(torch.linspace(-1, 1, SIDE))
    run(Custom(lambda m, x: m.lif(m.bn(x)), lif=per_channel), x, "a parameter per channel")
    run(Custom(lambda m, x: m.lif(m.bn(x) + x[:, :1])), x, "must not be broadcast")
    run(Custom(lambda m, x: m.lif(m.bn(x) + x.float())), x, "must be a tensor of torch.float64")
    run(Custom(lambda m, x: m.lif(m.bn(x).reshape(2, -1))), x, "more than split time")
    run(Custom(lambda m, x: m.lif(m.bn(x))).eval(), x[:0], "the input is empty")
    half = Custom(lambda m, x: m.lif(m.bn(x))).bfloat16()
    with pytest.warns(UserWarning, match="running statistics must be torch.float32"):
        fuse(half)(x.bfloat16())


def test_optional_arguments_run_the_original_forward():
    class Optional(Custom):
        def forward(self, x, residual=None):
            y = self.bn(x)
            return self.lif(y if residual is None else y + residual)

    model = Optional(None).double()
    fused = fuse(model)
    x = data()[:, 0]
    assert ops_of(fused, x) == ["norm_lif"]
    model(x)
    with pytest.warns(UserWarning, match="called with other than 1 tensors"):
        ours = fused(x, x)
    assert torch.equal(ours, model(x, x))
