"""``snnfast profile``: every layer with its time, the bytes it must move and those it keeps."""

import pytest
import torch
from torch import nn

from snnfast.cli import main
from snnfast.models import create_model
from snnfast.nn import LIF, BatchNormLIF
from snnfast.nn.over_time import over_time
from snnfast.train import profile as profiles
from snnfast.train import profile_report

T, B, C, H = 4, 2, 3, 8
F32 = torch.float32


def model_rows(model, x, dtype=F32):
    found = profiles.profile(model, x, dtype, repeats=2)
    return found, {row.name: row for row in found.layers}


class Chain(nn.Module):
    """Two layers by hand: an unfused block, then a fused one with a residual of spikes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.bn, self.lif = nn.BatchNorm2d(C), LIF()
        self.inner = nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False))
        self.fused = BatchNormLIF(C)
        self.head = nn.Linear(C * H * H, 5)

    def forward(self, x):
        s = self.lif(over_time(lambda x: self.bn(self.conv(x)), x))
        s = self.fused(over_time(self.inner, s), s)
        return over_time(lambda s: self.head(s.flatten(1)), s)


def test_bytes_of_a_chain_are_those_of_the_table():
    _, rows = model_rows(Chain(), torch.randn(T, B, C, H, H))
    n = T * B * C * H * H
    b, w = 4 * n, 4 * C * C * 9
    assert list(rows) == ["conv", "bn", "lif", "inner.0", "fused", "head", profiles.OTHER]
    moved = {name: row.moved for name, row in rows.items()}
    assert moved["conv"] == 5 * b + 3 * w  # its input takes no gradient
    assert moved["inner.0"] == 6 * b + 3 * w
    assert (moved["bn"], moved["lif"], moved["fused"]) == (8 * b, 5 * b, 11 * b)
    # Batch norm and neurons in one op: 8b, of which the neurons alone are 5b.
    assert (
        rows["bn"].floor == 3 * b and rows["lif"].floor == 5 * b and rows["fused"].floor == 11 * b
    )
    assert rows[profiles.OTHER].moved is None and rows[profiles.OTHER].floor is None


def test_every_storage_is_kept_once_where_it_is_saved_first():
    _, rows = model_rows(Chain(), torch.randn(T, B, C, H, H))
    n = T * B * C * H * H
    b = 4 * n
    assert rows["conv"].kept == b and rows["conv"].kept_floor == b
    # Batch norm keeps its input and statistics; LIF its own input, of which fused there is no need.
    assert b <= rows["bn"].kept <= b + 64 * C and rows["bn"].kept_floor == b
    assert rows["lif"].kept == b and rows["lif"].kept_floor == 0
    # The spikes are kept by the second convolution, and not once more as the residual.
    assert rows["inner.0"].kept == b and rows["inner.0"].kept_floor == n // 8
    assert b <= rows["fused"].kept <= b + 64 * C and rows["fused"].kept_floor == b + n // 8
    assert rows["head"].kept == b and rows["head"].kept_floor == n // 8


def test_a_static_stem_counts_what_it_reads_once():
    model = create_model("digits_cnn", num_classes=10, in_channels=1, image_size=8, timesteps=T)
    _, rows = model_rows(model, torch.rand(B, 1, 8, 8))
    x = 4 * B * 16 * 8 * 8
    # The image's five times, the spikes and twice their gradient at every step.
    assert rows["bn1"].moved == 5 * x + 3 * T * x
    assert rows[profiles.OTHER].kept > 0  # the indices of the max-pools


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward_s = backward
        profiles.time.sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        profiles.time.sleep(ctx.backward_s)
        return grad.clone(), None, None


class Sleep(nn.Module):
    def __init__(self, forward, backward):
        super().__init__()
        self.seconds = forward, backward

    def forward(self, x):
        return _Slow.apply(x, *self.seconds)


def test_times_go_to_the_layer_that_takes_them():
    model = nn.Sequential(nn.Linear(4, 4), Sleep(0.2, 0.0), nn.ReLU(), Sleep(0.0, 0.3), nn.ReLU())
    found, rows = model_rows(model, torch.randn(3, 4))
    assert 200 <= rows["1"].forward_ms < 290 and 300 <= rows["3"].backward_ms < 390
    for name in ("0", "2", "4", profiles.OTHER):
        assert rows[name].ms < 90
    assert rows["1"].backward_ms < 90 and rows["3"].forward_ms < 90
    assert found.forward_ms >= 200 and found.backward_ms >= 300


def test_what_lies_between_layers_is_no_layers():
    class Between(nn.Sequential):
        def forward(self, x):
            return self[1](_Slow.apply(self[0](x), 0.2, 0.2) * 1.0)

    _, rows = model_rows(Between(nn.Linear(4, 4), nn.ReLU()), torch.randn(3, 4))
    assert rows["0"].ms < 90 and rows["1"].ms < 90
    assert rows[profiles.OTHER].forward_ms > 150 and rows[profiles.OTHER].backward_ms > 150


def test_layers_add_up_to_the_step():
    found, rows = model_rows(Chain(), torch.randn(T, B, C, H, H))
    assert sum(row.forward_ms for row in rows.values()) >= found.forward_ms * 0.999
    assert sum(row.backward_ms for row in rows.values()) >= found.backward_ms * 0.999
    assert all(row.forward_ms > 0 and row.backward_ms > 0 for row in found.layers[:-1])
    assert found.copy_bandwidth > 1e6


def test_weights_stay_and_no_hook_is_left():
    model = Chain()
    before = {name: p.clone() for name, p in model.named_parameters()}
    model_rows(model, torch.randn(T, B, C, H, H))
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_half_precision_halves_what_is_kept():
    x = torch.randn(T, B, C, H, H)
    kept = {
        dtype: model_rows(Chain(), x, dtype)[1]["inner.0"].kept for dtype in (F32, torch.bfloat16)
    }
    weight = 2 * C * C * 9  # autocast's copy of the weight is kept, too
    assert kept[torch.bfloat16] == pytest.approx(kept[F32] / 2 + weight, abs=64)


def test_command_prints_a_table_and_writes_a_plot(tmp_path, capsys):
    argv = ["profile", "digits_cnn", "--timesteps", "2", "--batch_size", "2", "--image-size", "8"]
    assert main([*argv, "--channels", "1", "--output", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    for name in ("conv1", "bn3", "bn2", "head", profiles.OTHER, "whole step"):
        assert any(line.startswith(name) for line in out.splitlines())
    path = tmp_path / "new" / profile_report.PLOT
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert out.splitlines()[-1] == str(path)
    argv[argv.index("--batch_size")] = "--batch"  # as it was called
    assert main([*argv, "--dtype", "bfloat16"]) == 0
    title = capsys.readouterr().out.splitlines()[0]
    assert "bfloat16" in title and "batch 2 x" in title


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["digit_cnn"], "did you mean 'digits_cnn'?"),
        (["zzz"], "name must be one of ann_digits_cnn, "),
        (
            ["digits_cnn", "--batch-size", "0"],
            "argument --batch_size: must be a whole number from 1, got '0'",
        ),
        (["digits_cnn", "--image-size", "4"], "image_size must be >= 8, got 4"),
        (["digits_cnn", "--dtype", "fp32"], "invalid choice: 'fp32'"),
        (["digits_cnn", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["digits_cnn", "--output", __file__], "output: "),
        ([], "required: MODEL"),
    ],
)
def test_what_cannot_be_profiled_is_refused_in_one_line(options, message, capsys):
    assert main(["profile", *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_median_of_steps_is_shown():
    """One slow step of three moves no layer's time."""
    delays = iter([0.0, 0.0, 0.2, 0.0, 0.0])  # warm-up, sizes, then three timed steps

    class Hiccup(nn.Module):
        def forward(self, x):
            profiles.time.sleep(next(delays))
            return x * 1.0

    found = profiles.profile(nn.Sequential(nn.Linear(2, 2), Hiccup()), torch.ones(2, 2), F32, 3)
    assert found.layers[1].forward_ms < 100


class Device:
    """A host that takes 10 ms for each launch, and a device that takes 1 ms for each kernel: what
    the profiler times by, in place of torch.cuda and the host's clock."""

    def __init__(self, monkeypatch):
        self.host = self.busy = 0.0
        monkeypatch.setattr(profiles, "_Clock", self.clock)
        monkeypatch.setattr(profiles, "_copy_bandwidth", lambda device: 1e12)
        monkeypatch.setattr(profiles.time, "perf_counter", lambda: self.host)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: self.Event(self))
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.queue(cycles / 2e9))

    def clock(self, device, real=profiles._Clock):
        return real(torch.device("cuda"))

    def queue(self, seconds):
        self.busy = max(self.host, self.busy) + seconds

    def launch(self):
        self.host += 0.010
        self.queue(0.001)

    def synchronize(self, device=None):
        self.host = max(self.host, self.busy)

    class Event:
        def __init__(self, device):
            self.device = device

        def record(self):
            self.at = max(self.device.host, self.device.busy)

        def elapsed_time(self, end):
            return 1e3 * (end.at - self.at)


def test_on_a_device_the_work_is_timed_and_not_its_launches(monkeypatch):
    device = Device(monkeypatch)

    class Launch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            device.launch()
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            device.launch()
            device.launch()
            return grad.clone()

    layer = type("Kernel", (nn.Module,), {"forward": lambda self, x: Launch.apply(x)})
    model = nn.Sequential(nn.Linear(2, 2), layer(), layer())
    found = profiles.profile(model, torch.ones(2, 2), F32, 3)
    rows = {row.name: row for row in found.layers}
    for name in ("1", "2"):
        assert rows[name].forward_ms == pytest.approx(1.0)
        assert rows[name].backward_ms == pytest.approx(2.0)
    assert found.forward_ms == pytest.approx(2.0) and found.backward_ms == pytest.approx(4.0)
