"""A whole training step under torch.compile: one graph for all numbers of steps and batch sizes,
and no change of layout that the layers bring in."""

import copy

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import snnfast
from snnfast.models.resnet import RESNET18, ResNet

pytestmark = pytest.mark.unpoisoned


@pytest.fixture
def counting():
    """A compiler, and the graphs that it was given."""
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    yield compiler, graphs
    torch._dynamo.reset()


def resnet18():
    layout = RESNET18 | {"widths": (4, 8, 8, 8), "stem": 4}
    torch.manual_seed(0)
    return ResNet(layout, num_classes=5, in_channels=3, image_size=8, timesteps=4, aux_head=None)


def step_of(model, optimizer, how):
    """A training step, its forward and loss compiled as ``how`` says."""

    def loss_of(x, target, teacher):
        return snnfast.twkd_loss(model(x), target, teacher)

    loss_of = torch.compile(loss_of, **how) if how else loss_of

    def step(x, target, teacher):
        optimizer.zero_grad()
        loss = loss_of(x, target, teacher)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def test_a_resnet18_is_one_graph_for_any_steps_and_batch(counting):
    compiler, graphs = counting
    model = resnet18()
    other = copy.deepcopy(model)
    steps = [
        step_of(m, torch.optim.SGD(m.parameters(), lr=1e-3), how)
        for m, how in (
            (model, {"backend": compiler, "fullgraph": True}), (other, None)
        )
    ]  # fmt: skip
    for steps_of_time, batch in ((2, 9), (4, 9), (6, 9), (4, 12)):
        x = torch.randn(steps_of_time, batch, 3, 8, 8)
        target, teacher = torch.randint(5, (batch,)), torch.randn(batch, 5)
        for t, axes in ((x, (0, 1)), (target, 0), (teacher, 0)):
            torch._dynamo.mark_dynamic(t, axes)  # one that became a number would be an error
        compiled, plain = (step(x, target, teacher) for step in steps)
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
        other.load_state_dict(model.state_dict())  # a flipped spike would part them for good
    assert len(graphs) == 1


def test_no_layout_changes_on_the_way():
    """Channels-last: forward and backward copy no sequence that a network of ReLU would not."""

    def copies(*neurons):
        torch._dynamo.reset()
        first, second = neurons
        net = torch.nn.Sequential(
            snnfast.nn.OverTime(torch.nn.Conv2d(4, 8, 3, padding=1, bias=False)),
            first,
            snnfast.nn.OverTime(torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)),
            second,
        ).to(memory_format=torch.channels_last)
        x = torch.randn(3 * 8, 4, 6, 6).contiguous(memory_format=torch.channels_last)
        x = x.unflatten(0, (3, 8)).requires_grad_()
        graphs = []

        def keep(graph, inputs):
            graphs.append(graph)
            return make_boxed_func(graph.forward)

        compiler = aot_autograd(fw_compiler=keep, bw_compiler=keep)
        compiled = torch.compile(net, backend=compiler, fullgraph=True)
        compiled(x).square().sum().backward()
        assert len(graphs) == 2
        nodes = [node for graph in graphs for node in graph.graph.nodes if node.op != "output"]
        sequences = [n for n in nodes if getattr(n.meta.get("val"), "ndim", 0) >= 4]
        return sum("clone" in str(n.target) or "copy" in str(n.target) for n in sequences)

    ours = copies(snnfast.nn.BatchNormLIF(8), snnfast.nn.LIF())
    assert ours <= copies(torch.nn.ReLU(), torch.nn.ReLU())
