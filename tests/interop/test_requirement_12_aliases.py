"""``install``: scripts find ours under the names that they import, those of copies that they carry,
too."""

import subprocess
import sys
from pathlib import Path

import pytest
from interop.test_requirement_11_pass_through import run

SCRIPT = """
import snnfast
snnfast.interop.install("spikingjelly", "src.spikingjelly")
snnfast.interop.install("spikingjelly")
import spikingjelly
import spikingjelly.activation_based as ab
from spikingjelly import clock_driven
from spikingjelly.activation_based import base, functional, layer
from spikingjelly.cext import neuron as cext_neuron
from spikingjelly.clock_driven.layer import SeqToANNContainer
from spikingjelly.clock_driven.neuron import MultiStepLIFNode
from spikingjelly.clock_driven.surrogate import ATan
from src.spikingjelly.clock_driven.neuron import MultiStepLIFNode as carried
from snnfast.interop.spikingjelly import clock_driven as ours
assert spikingjelly.clock_driven is clock_driven is ours
assert ab.functional is functional and base.MemoryModule is ab.base.MemoryModule
assert carried is MultiStepLIFNode is ours.neuron.MultiStepLIFNode
assert issubclass(cext_neuron.MultiStepIFNode, clock_driven.neuron.BaseNode)
assert "spikingjelly.clock_driven.monitor" in sys.modules
import src.spikingjelly
assert src.spikingjelly is spikingjelly
"""


def test_published_imports_find_ours():
    run(SCRIPT, ("spikingjelly",))


def test_a_copy_within_a_package(tmp_path: Path):
    """Relative imports, attributes of the package, and one namespace alone."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/__init__.py").write_text("")
    (tmp_path / "src/layers.py").write_text("from .spikingjelly.clock_driven import neuron\n")
    script = f"""
sys.path.insert(0, {str(tmp_path)!r})
import snnfast, src
snnfast.interop.install("src.spikingjelly", "src.more.clock_driven")
from src import layers
import src.spikingjelly.clock_driven.functional
assert src.spikingjelly.clock_driven.neuron is layers.neuron
from src.more.clock_driven import neuron
from src.more.clock_driven.layer import Dropout
assert neuron is layers.neuron
"""
    run(script, ("spikingjelly",))


def test_a_copy_that_is_imported_later(tmp_path: Path):
    """An alias is an attribute of its package, as the copy was, and the package is the script's."""
    for package in ("src", "src/spikingjelly", "src/spikingjelly/clock_driven"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"here = {package!r}")
    script = f"""
sys.path.insert(0, {str(tmp_path)!r})
import snnfast
snnfast.interop.install("src.spikingjelly")
import src.spikingjelly.clock_driven.neuron
assert src.here == "src" and "here" not in vars(src.spikingjelly)
assert src.spikingjelly.clock_driven.neuron is snnfast.interop.spikingjelly.clock_driven.neuron
from src import spikingjelly
"""
    run(script, ("spikingjelly",))


BEFORE = """
import snnfast, spikingjelly.activation_based.base as theirs
try:
    snnfast.interop.install("src.spikingjelly", "spikingjelly")
except ValueError as error:
    print(error)
assert sys.modules["spikingjelly.activation_based.base"] is theirs
assert "src.spikingjelly" not in sys.modules
"""


def test_too_late_is_named_and_nothing_is_done():
    pytest.importorskip("spikingjelly", reason="make peers installs it")
    said = run(BEFORE, ())
    assert said.startswith("install: spikingjelly must not be imported before, got /")
    assert said.endswith("call install above all other imports\n")


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        ((), ValueError, "install: names must be one or more packages, got none"),
        ((3,), TypeError, "install: names must be strings, got int"),
        (("a-b",), ValueError, "install: names must be dotted names of packages, got 'a-b'"),
        (
            ("spikingjelly.neuron",),
            ValueError,
            "install: names must be those of packages, got the module 'spikingjelly.neuron'",
        ),
    ],
)
def test_bad_names(names, error, said):
    import snnfast

    with pytest.raises(error, match=said):
        snnfast.interop.install(*names)


TRAINS = """
import snnfast
snnfast.interop.install("spikingjelly")
import torch
from spikingjelly.clock_driven import functional, layer, neuron

net = torch.nn.Sequential(
    layer.SeqToANNContainer(torch.nn.Conv2d(2, 4, 3, 1, 1), torch.nn.BatchNorm2d(4)),
    neuron.MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy"),
    layer.SeqToANNContainer(torch.nn.Flatten(), torch.nn.Linear(64, 3)),
)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(2):
    loss = net(torch.randn(4, 2, 2, 4, 4)).mean(0).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    functional.reset_net(net)
assert snnfast.explain(net, torch.randn(4, 2, 2, 4, 4))[0][0] == "lif"
"""


def test_a_script_trains_with_one_line_at_its_top():
    run(TRAINS, ("spikingjelly", "cupy", "torchvision", "tensorboard"))
    assert subprocess.run([sys.executable, "-c", "import snnfast.interop"]).returncode == 0
