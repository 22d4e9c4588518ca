"""The rows of docs/pages/your_lif.md: each call against the published equations in a loop."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "pages" / "your_lif.md").read_text()
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| (\[[^|]+\]) \| `([^`]+)` \|$", re.M)
ROWS = {name: (layout, call) for name, _, layout, call in ROW.findall(PAGE)}
STEPS = 8


@pytest.fixture(scope="module")
def page() -> dict:
    """What the blocks of the page define."""
    names = {"__name__": "docs"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S):
        exec(block, names)
    return names


class Fire(torch.autograd.Function):
    """S = 1 where u >= 0, or u > 0; with the derivative g(u)."""

    @staticmethod
    def forward(ctx, u, strict, g):
        ctx.save_for_backward(u)
        ctx.g = g
        return (u > 0 if strict else u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.g(*ctx.saved_tensors), None, None


def triangle(u):
    return (1 - u.abs()).clamp(min=0)


def rect(u):
    return (u.abs() < 0.5).to(u.dtype)


def closed_rect(u):
    return (u.abs() <= 0.5).to(u.dtype)


def sigmoid(u):
    return 4 * torch.sigmoid(4 * u) * (1 - torch.sigmoid(4 * u))


def arctan(u):
    return 1 / (1 + 10 * u * u)


def gaussian(u, mean, deviation):
    return torch.exp(-((u - mean) ** 2) / (2 * deviation**2)) / math.sqrt(2 * math.pi) / deviation


def multi_gaussian(u):
    sides = gaussian(u, 0.5, 3.0) + gaussian(u, -0.5, 3.0)
    return 0.5 * (1.15 * gaussian(u, 0.0, 0.5) - 0.15 * sides)


def scan(step, x, *states):
    """Outputs [T, ...] of ``step(x_t, *states) -> (output, *states)``."""
    outputs = []
    for x_t in x:
        out, *states = step(x_t, *states)
        outputs.append(out)
    return torch.stack(outputs)


def plain(d, theta=1.0, strict=False, g=triangle, soft=False, detach_reset=False,
          detach_state=False):  # fmt: skip
    """H = d V + X; S; V = (1 - S) H or H - theta S."""

    def run(x, **_):
        def step(x_t, v):
            v = v.detach() if detach_state else v
            h = v * d + x_t
            s = Fire.apply(h - theta, strict, g)
            past = s.detach() if detach_reset else s
            return s, h - past * theta if soft else (1 - past) * h

        return scan(step, x, torch.zeros_like(x[0]))

    return run


def delayed(d, theta, g, detach=False):
    """H = d V (1 - S[t-1]) + X; S = [H > theta]; V = H."""

    def run(x, **_):
        def step(x_t, v, s):
            h = d * v * (1 - (s.detach() if detach else s)) + x_t
            s = Fire.apply(h - theta, True, g)
            return s, h, s

        return scan(step, x, torch.zeros_like(x[0]), torch.zeros_like(x[0]))

    return run


class AboutZero(torch.autograd.Function):
    """S = [H > 0.2], with a rectangle about H = 0."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return torch.gt(h, 0.2).float()

    @staticmethod
    def backward(ctx, grad):
        return grad * rect(*ctx.saved_tensors)


def esvae(x, **_):
    def step(x_t, v, s):
        h = 0.25 * v * (1 - s) + x_t
        s = AboutZero.apply(h)
        return s, h, s

    return scan(step, x, torch.zeros_like(x[0]), torch.zeros_like(x[0]))


def integrator(d):
    def step(x_t, v):
        v = v * d + x_t
        return v, v

    return lambda x, **_: scan(step, x, torch.zeros_like(x[0]))


def hybrid(x, **_):
    def step(x_t, v):
        u = v / 1.0 - 1.0
        s = Fire.apply(u, True, lambda u: 0.3 * triangle(u))
        return s, 0.99 * v + x_t - 1.0 * (u > 0).float()

    return scan(step, x, torch.zeros_like(x[0]))


def tanh_window(x, **_):
    end = math.tanh(1.5)

    def step(x_t, v):
        h = v * 0.25 + x_t
        soft = (torch.tanh(3.0 * (torch.clamp(h, 0, 1) - 0.5)) + end) / (2 * end)
        s = (torch.gt(h, 0.5).float() - soft).detach() + soft
        return s, h * (1 - s)

    return scan(step, x, torch.zeros_like(x[0]))


def ternary(x, **_):
    def step(x_t, v):
        h = v * 0.25 + x_t
        soft = torch.clamp(h, -1, 1)
        s = ((h >= 0.5).float() - (h <= -0.5).float() - soft).detach() + soft
        return s, h * (1 - torch.abs(s))

    return scan(step, x, torch.zeros_like(x[0]))


def attention_cell(x, **_):
    def step(x_t, v):
        u = v + x_t
        s = Fire.apply(u - 0.3, False, rect)
        return s, (s * 0.3 + (1 - s) * u) * 0.3 + 0.0

    return scan(step, x, torch.zeros_like(x[0]))


class Integer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return torch.round(torch.clamp(h, 0, 4))

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return grad * ((h >= 0) & (h <= 4)).to(h.dtype)


def integer(x, **_):
    def step(x_t, v, s):
        h = 0.25 * (v - s) + x_t
        s = Integer.apply(h)
        return s, h, s

    return scan(step, x, torch.zeros_like(x[0]), torch.zeros_like(x[0]))


def glif(x, **_):
    a, b, c = 0.6, 0.3, 0.7

    def step(x_t, v, s):
        leak = (1 - a * (1 - 0.25)) * v
        h = leak - (1 - a) * 0.0625 + x_t * (1 - b * (1 - 0.5)) - leak * c * s - (1 - c) * 0.5 * s
        s = Fire.apply(h - 0.5, False, rect)
        return s, h, s

    return scan(step, x, torch.zeros_like(x[0]), torch.zeros_like(x[0]))


def complementary(x, **_):
    def step(x_t, v, m):
        h = v * (1 - 1.0 / 2.0) + x_t
        m = m * torch.sigmoid(h / 2.0)
        s = Fire.apply(h - 1.0, False, closed_rect)
        m = m + s
        return s, h - s * 1.0 - s * torch.sigmoid(m), m

    return scan(step, x, torch.zeros_like(x[0]), torch.zeros_like(x[0]))


def asgl(x, decay, w, **_):
    return w * plain(torch.sigmoid(decay), w, True)(x)


def spikenet(x, **_):
    def step(x_t, v, theta):
        h = v + (x_t - (v - 0.0)) / 2.0
        s = Fire.apply(h - theta, True, lambda u: torch.relu(1 - 1.5 * u.abs()))
        return s, (1 - s) * h + s * 0.0, 0.2 * s + theta * 0.7

    return scan(step, x, torch.zeros_like(x[0]), torch.ones_like(x[0]))


def event_flow(x, leak, theta, **_):
    leak, theta = leak.view(-1, 1, 1), theta.view(-1, 1, 1)
    return delayed(leak, theta, arctan, detach=True)((1 - leak) * x)


def event_flow_soft(x, leak, theta, **_):
    leak, theta = leak.view(-1, 1, 1), theta.view(-1, 1, 1)

    def step(x_t, v, s):
        h = v * leak + (1 - leak) * x_t - s.detach() * theta
        s = Fire.apply(h - theta, True, arctan)
        return s, h, s

    return scan(step, x, torch.zeros_like(x[0]), torch.zeros_like(x[0]))


def alif(x, **_):
    def step(x_t, v, s, b):
        b = 0.95 * b + (1 - 0.95) * s
        theta = 1.6 + 0.184 * b
        v = v * 0.9 + (1 - 0.9) * x_t - theta * s
        s = Fire.apply(v - theta, True, multi_gaussian)
        return s, v, s, b

    return scan(step, x, *(torch.full_like(x[0], start) for start in (0.0, 0.0, 1.6)))


def conversion(x, **_):
    def step(x_t, v):
        h = v + x_t
        s = Fire.apply(h - 1.5, False, triangle) * 1.5
        return s, h - s

    return scan(step, x, torch.full_like(x[0], 0.5 * 1.5))


def leaky(x, **_):
    def step(x_t, v):
        past = (v > 1.0).float()
        h = 0.9 * v + x_t - past * 1.0
        s = Fire.apply(h - 1.0, True, lambda u: 1 / (1 + (math.pi * u) ** 2))
        return s, h

    return scan(step, x, torch.zeros_like(x[0]))


LOOPS = {
    "TET": plain(0.5, strict=True),
    "SNN-RAT": plain(1.0),
    "TAB": lambda x, decay, **_: plain(decay, strict=True)(x),
    "TAB, last layer": lambda x, decay, **_: integrator(decay)(x),
    "NDA": plain(0.25, 0.5, g=rect),
    "STBP": delayed(0.2, 0.5, rect),
    "STBP-simple, tdBN": delayed(0.25, 0.2, rect),
    "LTMD": lambda x, w, **_: delayed(0.25, torch.tanh(w), rect)(x),
    "MS-ResNet, EMS-YOLO, Att-Res": delayed(0.25, 0.5, rect, detach=True),
    "ESVAE, FSVAE": esvae,
    "BNTT, behind its norms": plain(
        0.95, strict=True, g=lambda u: 0.3 * triangle(u), soft=True, detach_reset=True
    ),
    "hybrid-snn-conversion": hybrid,
    "FSTA": tanh_window,
    "Ternary-Spike": ternary,
    "MA-, TA-, RM-, ASA-SNN": attention_cell,
    "SpikeYOLO, SDT-V3, Spike2Former": integer,
    "GLIF": glif,
    "CLIF": complementary,
    "SLTT": plain(1 - 1.0 / 1.1, g=closed_rect, soft=True, detach_state=True),
    "OTTT": plain(1 - 1.0 / 2.0, g=sigmoid, soft=True, detach_reset=True, detach_state=True),
    "OTTT, trace of S": integrator(0.5),
    "TWKD, RateBP": plain(1 - 1.0 / 1.25, g=sigmoid),
    "ASGL": asgl,
    "SpikeNet, SpikeGCL": spikenet,
    "event_flow": event_flow,
    "event_flow, soft": event_flow_soft,
    "Efficient-spiking-networks": alif,
    "QCFS, SRP, COS": conversion,
    "snnTorch's Leaky": leaky,
}
LAYOUTS = {
    "[T, B, ...]": (lambda t: t, lambda t: t),
    "[T, B, C, ...]": (lambda t: t, lambda t: t),
    "[B, T, ...]": (lambda t: t.movedim(0, 1), lambda t: t.movedim(1, 0)),
    "[B, ..., T]": (lambda t: t.movedim(0, -1), lambda t: t.movedim(-1, 0)),
    "[T B, ...]": (lambda t: t.flatten(0, 1), lambda t: t.unflatten(0, (STEPS, -1))),
}
SCALES = {"Efficient-spiking-networks": 12.0, "event_flow": 3.0, "event_flow, soft": 3.0}


def test_each_row_that_has_a_call_has_a_loop():
    assert list(ROWS) == list(LOOPS)
    assert PAGE.count("| not expressible: ") == 3


@pytest.mark.parametrize("values", ["random", "grid"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_row_equals_its_equations(page, name, values):
    layout, call = ROWS[name]
    theirs, back = LAYOUTS[layout]
    x = (torch.randn(STEPS, 3, 4, 9, 9) + 0.4) * SCALES.get(name, 1.0)
    x = (20 * x).round() / 20 if values == "grid" else x
    learned = {
        k: page[k].detach().clone().requires_grad_() for k in ("decay", "w", "theta", "leak")
    }
    leaves = [x.clone().requires_grad_(), *learned.values()]

    def gradients(s: Tensor, ds: Tensor):
        found = torch.autograd.grad(s, leaves, ds, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]

    expected = LOOPS[name](leaves[0], **learned)
    ours = back(eval(call, page | learned | {"x": theirs(leaves[0]), "T": STEPS}))
    assert torch.equal(ours, expected), (ours != expected).float().mean()
    assert 0.01 < (expected != 0).float().mean()
    ds = torch.randn_like(expected)
    for a, b in zip(gradients(ours, ds), gradients(expected, ds), strict=True):
        bound = 1e-5 * (1 + b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=1e-4, atol=bound)
