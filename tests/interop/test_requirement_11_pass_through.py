"""What snnfast has no own one of comes from an installed SpikingJelly; none of ours needs it, nor
what it needs."""

import subprocess
import sys

import pytest

ABSENT = ("torchvision", "cupy", "tensorboard", "lava", "scipy", "matplotlib", "pandas", "h5py")
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Absent())
"""
ALL = """
import importlib
for namespace in ("clock_driven", "activation_based"):
    for name in ("base", "encoding", "functional", "layer", "monitor", "neuron", "surrogate"):
        importlib.import_module(f"snnfast.interop.spikingjelly.{namespace}.{name}")
import snnfast.interop.spikingjelly.cext.neuron, snnfast.interop.spikingjelly.neuron
"""


def run(script: str, absent=ABSENT) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK % (absent,) + script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


def test_ours_need_nothing_of_theirs():
    used = 'print([n for n in sys.modules if n.split(".")[0] == "spikingjelly"])'
    assert run(ALL + used, (*ABSENT, "spikingjelly")) == "[]\n"


MISSING = """
import snnfast
snnfast.interop.install("spikingjelly")
def said(line):
    try:
        exec(line)
    except ImportError as error:
        print(type(error).__name__, error)
said("from spikingjelly.activation_based.neuron import KLIFNode")
said("from spikingjelly.activation_based import rnn")
said("from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS")
said("import spikingjelly.clock_driven.model.sew_resnet")
import spikingjelly.activation_based as ab
said("ab.neuron.PSN")
assert not hasattr(ab.neuron, "_private")
"""


def test_one_clear_error_where_none_is_installed():
    lines = run(MISSING, (*ABSENT, "spikingjelly")).splitlines()
    said = "snnfast has no {} of its own, and passes it on to SpikingJelly, which must be installed"
    names = ("activation_based.neuron.KLIFNode", "activation_based.rnn", "datasets")
    for line, name in zip(lines, (*names, "clock_driven.model", "activation_based.neuron.PSN")):
        assert line.startswith("ModuleNotFoundError") and "pip install spikingjelly" in line
        assert said.format(name) in line, line
    assert len(lines) == 5


PASSED_ON = """
import importlib
import snnfast
from snnfast.interop.spikingjelly import activation_based as ab
if %r:
    snnfast.interop.install("spikingjelly", "src.spikingjelly")
    from spikingjelly import activation_based as ab
    import spikingjelly.activation_based.rnn as rnn
    again = importlib.import_module("src.spikingjelly.activation_based.rnn")
    from spikingjelly.clock_driven import rnn as older
    assert rnn is again is older and rnn.__spec__.name == rnn.__name__
    assert sys.modules["spikingjelly.activation_based.rnn"] is rnn
    assert sys.modules["spikingjelly.activation_based.neuron"] is ab.neuron
from snnfast.interop.spikingjelly.activation_based import functional, layer, neuron
import torch
node = ab.neuron.KLIFNode(step_mode="m")
net = torch.nn.Sequential(layer.Linear(3, 3), node, layer.Linear(3, 3), neuron.LIFNode())
functional.set_step_mode(net, "m")
net(torch.ones(4, 2, 3))
functional.reset_net(net)
assert type(node.v) is float
print(type(node).__module__.split(".")[0], ab.neuron.LIFNode is neuron.LIFNode)
try:
    from snnfast.interop.spikingjelly.activation_based.neuron import NoSuchNode
except ImportError as error:
    print(error)
print(hasattr(neuron, "NoSuchNode"))
try:
    import snnfast.interop.spikingjelly.datasets
except ImportError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "by path"])
def test_unknown_names_come_from_an_installed_one(installed):
    pytest.importorskip("spikingjelly", reason="make peers installs it")
    lines = run(PASSED_ON % installed, ()).splitlines()
    assert lines[0] == "spikingjelly True"
    assert "cannot import name 'NoSuchNode'" in lines[1]
    assert lines[2:] == ["False", "ModuleNotFoundError"]


CAUSE = """
import snnfast
snnfast.interop.install("spikingjelly")
try:
    from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS
except ImportError as error:
    print(error)
"""


def test_an_import_that_fails_within_theirs_names_its_own_cause():
    pytest.importorskip("spikingjelly", reason="make peers installs it")
    assert run(CAUSE) == "No module named 'torchvision'\n"
