"""What a network compiles, counted where there is no GPU; and ``warm_up``, which compiles it
beforehand."""

import copy
import subprocess
import sys
from pathlib import Path

import _triton_driver
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train_cases import small, taken_for_a_gpu, trainer_of
from triton import JITFunction, knobs

import snnfast
from snnfast.backends.triton import ahead, launch
from snnfast.ops import packed
from snnfast.train import loop

pytestmark = pytest.mark.unpoisoned


@pytest.fixture
def driver(monkeypatch):
    """Kernels are forgotten before and after, Triton's own list of them too."""

    def forget():
        _triton_driver.forget()
        for name in [name for name in sys.modules if name.startswith("snnfast.kernels.")]:
            for value in vars(sys.modules[name]).values():
                if isinstance(value, JITFunction):
                    value.device_caches.clear()

    with _triton_driver.installed() as found, snnfast.backend("triton"):
        forget()
        found.loaded.clear()
        yield found
        forget()


@pytest.fixture
def asked(driver, monkeypatch):
    """Kernels that Triton was to compile, by name, in order, each once; none is."""
    found = {}

    def note(kernel, key, *_):
        found[kernel.__name__, key] = None

    monkeypatch.setattr(JITFunction, "_do_compile", note)
    return found


class _Empty(torch.autograd.Function):
    """A convolution that computes nothing."""

    @staticmethod
    def forward(ctx, x, weight, like):
        ctx.save_for_backward(x, weight)
        return torch.empty_strided(like.shape, like.stride(), dtype=x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        return dx, torch.empty_like(weight), None


def _convolve(conv, x):
    x, weight = x.to(torch.bfloat16), conv.weight.to(torch.bfloat16)
    like = F.conv2d(x.to("meta"), weight.to("meta"), None, conv.stride, conv.padding)
    if x.is_contiguous(memory_format=torch.channels_last):
        like = like.to(memory_format=torch.channels_last)
    return _Empty.apply(x, weight, like)


@pytest.fixture
def packing(monkeypatch):
    """Spikes are packed as on a GPU."""
    monkeypatch.setattr(packed, "_look_is_free", lambda t: False)
    monkeypatch.setattr(packed, "_backend", lambda *_: "triton")
    monkeypatch.setattr(packed, "_known", packed._Known())


def test_kernels_of_a_resnet18(asked, packing, monkeypatch):
    """A step of CIFAR's recipes, and an evaluation."""
    monkeypatch.setattr(nn.Conv2d, "forward", _convolve)
    model = snnfast.models.create_model("resnet18", num_classes=10, decay_input=False)
    model = model.to(memory_format=torch.channels_last)
    x = torch.empty(128, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), snnfast.packed_spikes():
        logits = model(x)
        loss = snnfast.twkd_loss(logits, torch.zeros(128).long(), torch.zeros(128, 10))
    loss.backward()
    names = [name for name, _ in asked]
    assert {name: names.count(name) for name in names} == {
        "norm_stats": 2,  # a static input, a sequence
        "norm_prepare": 1,
        "lif_forward": 3,  # the same, and with a residual
        "pack_spikes": 1,
        "stepwise_rows": 1,
        "finish": 1,
        "scale_gradient": 1,
        "unpack_spikes": 1,
        "lif_backward": 5,  # the three; several tiles a program, or one
        "norm_finish": 2,
        "norm_dy": 2,
    }
    before = len(asked)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.eval()(x)
    assert len(asked) == before + 1  # evaluation takes no statistics


def test_one_neuron_takes_the_kernel_of_three(driver):
    """Of n and strides a kernel knows whether 16 divides them, no more."""

    def evaluate(n, residual):
        y = torch.zeros(4, 1, 1, 3)
        norm = dict(weight=None, bias=None, running_mean=torch.zeros(1), running_var=torch.ones(1))
        snnfast.lif(y[..., :n].contiguous())
        snnfast.norm_lif(y, residual.view(y.shape), training=False, **norm)

    with torch.no_grad():
        evaluate(3, torch.zeros(4, 3))
        before = len(driver.loaded)
        evaluate(1, torch.zeros(6).unfold(0, 3, 1))  # of stride 1
    assert before and len(driver.loaded) == before


class Network(nn.Module):
    """What a step changes: running statistics, random numbers, attributes; two kinds of layers."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 16), snnfast.nn.BatchNormLIF(16)
        self.plain, self.drop, self.lif = nn.BatchNorm1d(16), nn.Dropout(), snnfast.nn.LIF()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.norm(self.linear(x))
        y = self.plain(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return self.lif(self.drop(y))


def step(model, x):
    snnfast.tser_loss(model(x), torch.zeros(x.shape[1]).long(), alpha=0, lam=0).backward()
    with torch.no_grad():
        model.eval()(x)
    model.train()


def cubins():
    return sorted(Path(knobs.cache.dir).glob("*/*.cubin"))


def test_a_step_compiles_nothing_after_it(driver, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    model, x, apart = Network(), torch.randn(4, 8, 3), []
    work = ahead.compile_apart

    def watched(jobs, workers):
        assert not cubins()
        work(jobs, workers)
        apart[:] = workers, cubins()

    monkeypatch.setattr(ahead, "compile_apart", watched)

    def loss(logits):
        return snnfast.tser_loss(logits, torch.zeros(8).long(), alpha=0, lam=0)

    count = snnfast.warm_up(model, x, loss=loss, workers=2)
    loaded = list(driver.loaded)
    assert count == len(loaded) > 8 and not driver.launches
    assert apart == [2, cubins()] and len(cubins()) == count, "compiled by other processes"
    monkeypatch.setattr(JITFunction, "_do_compile", lambda *_: pytest.fail("compiled"))
    step(model, x)
    assert driver.loaded == loaded and {kernel for kernel, _ in driver.launches} == set(loaded)
    assert snnfast.warm_up(model, x, loss=loss) == 0


@snnfast.neuron
def leaky(x, v, *, tau=3.0):
    h = v + (x - v) / tau
    s = snnfast.spike(h - 1.0)
    return s, h - s


def test_kernels_that_are_written_from_a_step(driver, monkeypatch, tmp_path):
    """By other processes, which get their text; one for all neurons of a structure."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x, work, apart = torch.randn(4, 8, 16, requires_grad=True), ahead.compile_apart, []

    def watched(jobs, workers):
        work(jobs, workers)
        apart[:] = cubins()

    monkeypatch.setattr(ahead, "compile_apart", watched)
    assert snnfast.warm_up(snnfast.nn.Neuron(leaky), x, workers=2) == 2 == len(apart)
    assert apart == cubins() and len(driver.loaded) == 2
    monkeypatch.setattr(JITFunction, "_do_compile", lambda *_: pytest.fail("compiled"))
    snnfast.nn.Neuron(leaky, tau=5.0)(x).sum().backward()
    assert [kernel for kernel, _ in driver.launches] == driver.loaded


def test_what_no_process_compiles_is_compiled_here(driver, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    model, x = nn.Sequential(nn.Linear(3, 16), snnfast.nn.LIF()), torch.randn(4, 8, 3)
    assert snnfast.warm_up(model, x, workers=2) == len(driver.loaded) == 2


def values(model):
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return kept, grads, torch.get_rng_state(), [m.training for m in model.modules()], model.calls


@pytest.mark.parametrize("fails", (False, True))
def test_nothing_is_changed(asked, fails):
    model, x = Network(), torch.randn(4, 8, 3, requires_grad=True)
    model.norm.eval()
    model.linear.bias.grad = torch.ones(16)
    before, buffers = values(model), list(map(id, model.buffers()))
    if fails:
        with pytest.raises(ZeroDivisionError):
            snnfast.warm_up(model, x, loss=lambda out: 1 // 0)
    else:
        assert snnfast.warm_up(model, x, workers=1) > 5 and asked
    torch.testing.assert_close(values(model), before, rtol=0, atol=0)
    assert x.grad is None and list(map(id, model.buffers())) == buffers
    assert launch._noted is None


@pytest.mark.parametrize(
    "options",
    (
        {"amp": "bf16", "channels_last": True, "mixup": 0.2, "batch_size": 8, "accumulate": 2},
        {"sequences": True, "packed_spikes": False},
    ),
    ids=("images", "sequences"),
)
def test_a_phase_of_training_compiles_before_its_first_step(asked, packing, monkeypatch, options):
    taken_for_a_gpu(monkeypatch)
    monkeypatch.setattr(ahead, "compile_apart", lambda *_: None)
    trainer = trainer_of(torch.device("cpu"), **options)
    before = copy.deepcopy(trainer.model.state_dict())
    assert trainer.warm_up() > 8
    torch.testing.assert_close(trainer.model.state_dict(), before, rtol=0, atol=0)
    known = list(asked)
    next(trainer.steps())
    assert list(asked) == known


def test_training_says_what_it_compiled(tmp_path, monkeypatch, capfd):
    def warm_up(*_, **options):
        assert options["workers"] is None and torch.is_grad_enabled()
        return 7

    monkeypatch.setattr(loop, "warm_up", warm_up)
    assert small(tmp_path / "cpu") == 0 and "compiled" not in capfd.readouterr().err
    taken_for_a_gpu(monkeypatch)
    assert small(tmp_path / "gpu") == 0
    assert "student: 7 kernels compiled in 0." in capfd.readouterr().err
    monkeypatch.setattr(loop, "warm_up", lambda *_, **__: [][0])
    with pytest.warns(UserWarning, match="kernels compile in the first step: list index out of"):
        assert small(tmp_path / "fails") == 0


def test_without_a_gpu_it_says_so():
    with pytest.warns(UserWarning, match="warm_up: there is nothing to compile: no CUDA device"):
        assert snnfast.warm_up(Network(), torch.zeros(4, 8, 3)) == 0


WRONG = {
    "model must be a torch module, got function": dict(model=lambda x: x),
    "example must be a tensor or a tuple of them, got int": dict(example=(torch.zeros(1), 4)),
    "example must be a tensor or a tuple of them, got list": dict(example=[torch.zeros(1)]),
    r"example must be a tensor or a tuple of them, got \(\)": dict(example=()),
    "loss must be a function or None, got str": dict(loss="mse"),
    "workers must be >= 1, got 0": dict(workers=0),
    "workers must be an int, got float": dict(workers=2.0),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    arguments = dict(model=nn.Identity(), example=torch.zeros(1)) | WRONG[message]
    with pytest.raises((TypeError, ValueError), match=f"^warm_up: {message}"):
        snnfast.warm_up(**arguments)


def test_who_compiles_does_not_wait_for_torch():
    code = "import sys; from snnfast.kernels.ahead import serve; serve(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True)
    modules = done.stderr.split()  # where its prints go
    assert "triton.runtime" in modules and "torch" not in modules
