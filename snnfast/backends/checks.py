"""The last door before tensors turn into addresses: sizes, strides and dtypes, held to the layer.

The public functions refuse in their own words what a user can get wrong. Whoever comes another way
(a traced graph that runs on other sizes, a hook that changes what autograd kept, an op called by
its name) must not make a kernel touch memory that is not a tensor's. Layers are checked by the
kinds of their tensors alone: what was let in once is let in again (``contract.Backend``).
"""

from torch import Tensor, int64, uint8
from torch import dtype as Dtype

from snnfast import surrogate
from snnfast.backends.layout import IO_DTYPES, is_dense, state_dtype
from snnfast.backends.spec import (
    DECAY_INPUT,
    DECAY_STATE,
    INTEGRATE,
    Channels,
    LifLayer,
    NeuronLayer,
    StepwiseLoss,
    TssdLoss,
    segments,
)

CHARGES = (INTEGRATE, DECAY_INPUT, DECAY_STATE)


def _refuse(name: str, wanted: str, t: Tensor) -> None:
    dtype = str(t.dtype).removeprefix("torch.")
    raise ValueError(
        f"backend: {name} must be {wanted}, got {dtype} {list(t.shape)} with strides "
        f"{list(t.stride())} on {t.device}"
    )


def axes(name: str, t: Tensor, count: int, wanted: str) -> None:
    """``t`` has so many axes at least."""
    if t.dim() < count:
        _refuse(name, wanted, t)


def _named(dtype: Dtype, shape) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


class _Steps:
    """The sequence [T, ...] that a kernel walks: every step dense, any distance between steps. All
    other tensors share its device and its layout within a step."""

    __slots__ = ("contiguous", "device", "dtype", "shape", "state", "strides", "time", "whole")

    def __init__(self, name: str, x: Tensor, steps: int | None = None):
        if x.dtype not in IO_DTYPES or x.dim() == 0 or not x.numel():
            _refuse(name, "a float tensor [T, ...] with elements", x)
        if steps is not None and x.shape[0] != steps:
            _refuse(name, f"[T, ...] with T = {steps}", x)
        self.whole = x.shape
        self.time, self.shape, self.strides = x.shape[0], x.shape[1:], x.stride()[1:]
        self.dtype, self.device = x.dtype, x.device
        self.state = state_dtype(x)
        self.contiguous = x.is_contiguous()
        if not self.contiguous and not is_dense(self.shape, self.strides):
            _refuse(name, "dense in memory within a step", x)

    def step(self, name: str, t: Tensor, dtype: Dtype) -> None:
        """``t`` is [...]."""
        self._check(name, t, dtype, 0)

    def sequence(self, name: str, t: Tensor, dtype: Dtype, time=None, any_stride=False) -> None:
        """``t`` is [T, ...] or [time, ...]; its steps lie side by side, or at ``any_stride``."""
        if (
            t.shape == self.whole
            and t.dtype == dtype
            and t.device == self.device
            and self.contiguous
            and time is None
            and t.is_contiguous()
        ):
            return
        time = self.time if time is None else time
        self._check(name, t, dtype, 1)
        if t.shape[0] != time:
            _refuse(name, _named(dtype, (time, *self.shape)), t)
        if any_stride or time == 1 or (self.contiguous and t.is_contiguous()):
            return
        if t.stride(0) != self.shape.numel():
            _refuse(name, "dense in memory", t)

    def state_of(self, name: str, t: Tensor | None) -> None:
        """``t`` is a state [...], or one for each step."""
        if t is not None and t.dim() > len(self.shape):
            self.sequence(name, t, self.state)
        elif t is not None:
            self.step(name, t, self.state)

    def borders(self, t: Tensor | None, steps: int) -> None:
        count = segments(steps) - 1
        if count and t is not None:
            self.sequence("borders", t, self.state, time=count)
        elif count:
            raise ValueError(f"backend: borders must be given for T = {steps}, got None")

    def _check(self, name: str, t: Tensor, dtype: Dtype, lead: int) -> None:
        fits = t.dtype == dtype and t.shape[lead:] == self.shape and t.device == self.device
        if not fits or t.dim() != lead + len(self.shape):
            _refuse(name, _named(dtype, (*"T"[:lead], *self.shape)) + f" on {self.device}", t)
        if self.contiguous and t.is_contiguous():
            return
        strides = t.stride()[lead:]
        if any(
            n != 1 and a != b for n, a, b in zip(self.shape, strides, self.strides, strict=True)
        ):
            _refuse(name, f"laid out with strides {list(self.strides)} within a step", t)


def _row(name: str, t: Tensor, like: Tensor, dtype: Dtype, *shape: int) -> None:
    if t.dtype != dtype or t.shape != shape or t.device != like.device or not t.is_contiguous():
        _refuse(name, f"contiguous {_named(dtype, shape)} on {like.device}", t)


def _statistics(steps: _Steps, x: Tensor, where: Channels, stats) -> None:
    """Rows [4, C], and that the channels they belong to exist."""
    _places(steps, *where)
    _row("stats", stats, x, steps.state, 4, where.count)


def _normalised(steps: _Steps, x: Tensor, where: Channels, stats, bias, residual) -> None:
    """What stands before a layer."""
    _statistics(steps, x, where, stats)
    _row("bias", bias, x, steps.state, where.count)
    if residual is not None:
        steps.sequence("residual", residual, x.dtype, any_stride=True)


def _places(steps: _Steps, channels: int, inner: int) -> None:
    if channels < 1 or inner < 1 or steps.shape.numel() % (channels * inner):
        raise ValueError(
            f"backend: channels and inner must divide a step of {steps.shape.numel()} neurons, "
            f"got {channels} and {inner}"
        )


def _neuron(layer: LifLayer, steps: _Steps, x: Tensor, v0, rate) -> None:
    if layer.charge not in CHARGES or not 0 <= layer.surrogate < len(surrogate.TABLE):
        raise ValueError(
            f"backend: charge and surrogate must be in the tables, got {layer.charge} and "
            f"{layer.surrogate}"
        )
    if v0 is not None:
        steps.step("v0", v0, steps.state)
    if rate is not None:
        _places(steps, layer.channels, layer.inner)
        shape = (layer.channels,) if rate.dim() else ()
        _row("rate", rate, x, steps.state, *shape)


def lif_forward(
    layer: LifLayer, where, x, v0, rate, s, v, borders, stats, bias, residual
) -> None:  # fmt: skip
    steps = _Steps("x", x, layer.steps)
    _neuron(layer, steps, x, v0, rate)
    steps.sequence("s", s, x.dtype)
    steps.state_of("v", v)
    if borders is not None:
        steps.borders(borders, layer.steps)
    if where is not None:
        _normalised(steps, x, where, stats, bias, residual)


def norm_lif_forward(layer: LifLayer, where, momentum, unbias, eps, *tensors) -> None:
    *tensors, weight, running_mean, running_var = tensors
    lif_forward(layer, where, *tensors)
    *_, stats, _, _ = tensors
    norm_prepare(momentum, unbias, eps, stats, weight, running_mean, running_var)


def _gradient(steps: _Steps, name: str, x: Tensor, dx: Tensor | None) -> None:
    """``dx`` is [T, ...], or summed over time."""
    if dx is not None and dx.dim() < x.dim():
        steps.step(name, dx, x.dtype)
    elif dx is not None:
        steps.sequence(name, dx, x.dtype)


def lif_backward(
    layer: LifLayer, where, count, x, v0, rate, borders, ds, dv, dx, dv0, drate, stats=None,
    bias=None, residual=None, totals=None,
) -> None:  # fmt: skip
    steps = _Steps("x", x, layer.steps)
    _neuron(layer, steps, x, v0, rate)
    steps.borders(borders, layer.steps)
    if ds is not None:
        steps.sequence("ds", ds, x.dtype, any_stride=True)
    steps.state_of("dv", dv)
    _gradient(steps, "dx", x, dx)
    if dv0 is not None:
        steps.step("dv0", dv0, steps.state)
    if drate is not None:
        _row("drate", drate, x, steps.state, *((layer.channels,) if drate.dim() else ()))
    if where is not None:
        _normalised(steps, x, where, stats, bias, residual)
    if totals is not None:
        _row("totals", totals, x, steps.state, 5, where.count)


def norm_lif_backward(layer: LifLayer, where, count, x, *tensors) -> None:
    *tensors, totals, dy = tensors
    lif_backward(layer, where, count, x, *tensors, totals)
    _gradient(_Steps("x", x), "dy", x, dy)


def _count(name: str, tensors, count: int) -> None:
    if len(tensors) != count:
        raise ValueError(f"backend: {name} must be {count} tensors, got {len(tensors)}")


def _program(layer: NeuronLayer, inputs, states, params) -> _Steps:
    """A neuron's own tensors; returns the steps that all others are held to."""
    step = layer.step
    _count("inputs", inputs, step.inputs)
    _count("states", states, step.states)
    _count("params", params, step.params)
    _count("rest", layer.rest, step.states)
    if not 0 <= layer.surrogate < len(surrogate.TABLE):
        raise ValueError(f"backend: surrogate must be in the table, got {layer.surrogate}")
    steps = _Steps("input", inputs[0], layer.steps)
    for x in inputs[1:]:
        steps.sequence("input", x, steps.dtype, any_stride=True)
    for v in states:
        if v is not None:
            steps.step("state", v, steps.state)
    for p in params:
        if p.dim():
            _places(steps, layer.channels, layer.inner)
        _row("param", p, inputs[0], steps.state, *((layer.channels,) if p.dim() else ()))
    return steps


def _state_borders(steps: _Steps, layer: NeuronLayer, borders) -> None:
    count, shape = segments(layer.steps) - 1, (layer.step.states,)
    if not count or not layer.step.states:
        return
    if borders is None or borders.shape[:2] != (*shape, count):
        got = "None" if borders is None else list(borders.shape)
        raise ValueError(f"backend: borders must be [{shape[0]}, {count}, ...], got {got}")
    for of_one in borders:
        steps.sequence("borders", of_one, steps.state, time=count)


def neuron_forward(layer, inputs, states, params, outputs, new_states, borders) -> None:
    steps = _program(layer, inputs, states, params)
    _count("outputs", outputs, layer.step.outputs)
    for s in outputs:
        steps.sequence("output", s, steps.dtype)
    if new_states:
        _count("new_states", new_states, layer.step.states)
    for v in new_states:
        steps.state_of("new state", v)
    if borders is not None:
        _state_borders(steps, layer, borders)


def neuron_backward(
    layer, inputs, states, params, borders, douts, dstates, dinputs, dstates0, dparams
) -> None:
    steps = _program(layer, inputs, states, params)
    _state_borders(steps, layer, borders)
    step = layer.step
    _count("douts", douts, step.outputs)
    _count("dstates", dstates, step.states)
    _count("dinputs", dinputs, step.inputs)
    _count("dstates0", dstates0, step.states)
    _count("dparams", dparams, step.params)
    for ds in douts:
        if ds is not None:
            steps.sequence("dout", ds, steps.dtype, any_stride=True)
    for dv in dstates:
        steps.state_of("dstate", dv)
    for dx in dinputs:
        if dx is not None and dx.dim() == len(steps.shape):
            steps.step("dinput", dx, steps.dtype)
        elif dx is not None:
            steps.sequence("dinput", dx, steps.dtype)
    for dv0 in dstates0:
        if dv0 is not None:
            steps.step("dstate0", dv0, steps.state)
    for p, dp in zip(params, dparams, strict=True):
        if dp is not None:
            _row("dparam", dp, inputs[0], steps.state, *p.shape)


def norm_lif_dy(
    layer: LifLayer, where, x, v0, rate, borders, ds, dv, dy, stats, bias, totals
) -> None:  # fmt: skip
    none = (None, None)
    lif_backward(
        layer, where, 0, x, v0, rate, borders, ds, dv, dy, *none, stats, bias, None, totals
    )


def norm_stats(where: Channels, momentum, unbias, eps, y, stats, *given) -> None:
    _statistics(_Steps("y", y), y, where, stats)
    norm_prepare(momentum, unbias, eps, stats, *given)


def norm_dy(where: Channels, y, dx, dy, stats, totals) -> None:
    steps = _Steps("y", y)
    _statistics(steps, y, where, stats)
    _gradient(steps, "dx", y, dx)
    _gradient(steps, "dy", y, dy)
    _row("totals", totals, y, steps.state, 5, where.count)


def norm_prepare(momentum, unbias, eps, stats, *given) -> None:
    channels = stats.shape[-1]
    _row("stats", stats, stats, state_dtype(stats), 4, channels)
    for name, row in zip(("weight", "running_mean", "running_var"), given, strict=True):
        if row is not None:
            _row(name, row, stats, stats.dtype, channels)


def norm_finish(count, stats, totals) -> None:
    channels = stats.shape[-1]
    _row("stats", stats, stats, state_dtype(stats), 4, channels)
    _row("totals", totals, stats, stats.dtype, 5, channels)


def _logits(name: str, t: Tensor, like: Tensor, shape) -> None:
    if t.shape != shape or t.dtype not in IO_DTYPES or t.device != like.device:
        _refuse(name, f"floating point {list(shape)} on {like.device}", t)


def _loss(logits, target, value, terms, unit, count: int) -> None:
    if logits.dim() != 3 or not logits.numel():
        _refuse("logits", "[T, B, C] with elements", logits)
    _logits("logits", logits, logits, logits.shape)
    _, rows, classes = logits.shape
    if target.dtype == int64:
        _row("target", target, logits, int64, rows)
    else:
        _logits("target", target, logits, (rows, classes))
        _row("target", target, logits, target.dtype, rows, classes)
    state = state_dtype(logits)
    _row("value", value, logits, state)
    _row("terms", terms, logits, state, count)
    _row("unit", unit, logits, state)


def stepwise_loss(
    loss: StepwiseLoss, logits, target, teacher_logits, value, terms, unit, gradient
) -> None:
    _loss(logits, target, value, terms, unit, 4)
    if teacher_logits is not None:
        _logits("teacher_logits", teacher_logits, logits, logits.shape[1:])
    if gradient is not None:
        _row("gradient", gradient, logits, logits.dtype, *logits.shape)
    if not 0 <= loss.self_target <= 2:
        raise ValueError(f"backend: self_target must be in 0..2, got {loss.self_target}")
    if teacher_logits is None and loss.kl_weight != 0:
        raise ValueError("backend: teacher_logits must be given where they have a weight, got None")


def tssd_loss(
    loss: TssdLoss, logits, target, aux_logits, value, terms, unit, gradient, aux_gradient
) -> None:
    _loss(logits, target, value, terms, unit, 3)
    if not 1 <= loss.student_steps <= logits.shape[0]:
        raise ValueError(
            f"backend: student_steps must be in 1..{logits.shape[0]}, got {loss.student_steps}"
        )
    if aux_logits is not None:
        _logits("aux_logits", aux_logits, logits, logits.shape)
    elif loss.spatial_weight != 0 or aux_gradient is not None:
        raise ValueError("backend: aux_logits must be given where they have a weight, got None")
    for name, t in (("gradient", gradient), ("aux_gradient", aux_gradient)):
        if t is not None:
            _row(name, t, logits, logits.dtype, *logits.shape)


def scale_gradient(gradient, grad_output, unit, scaled) -> None:
    state = state_dtype(gradient)
    if gradient.dtype not in IO_DTYPES:
        _refuse("gradient", "floating point", gradient)
    _row("gradient", gradient, gradient, gradient.dtype, *gradient.shape)
    _row("scaled", scaled, gradient, gradient.dtype, *gradient.shape)
    _row("grad_output", grad_output, gradient, state)
    _row("unit", unit, gradient, state)


def spikes(s: Tensor, bits: Tensor) -> None:
    """Dense ``s``, in any order of its axes, and its bits."""
    if s.dtype not in IO_DTYPES or not (s.is_contiguous() or is_dense(s.shape, s.stride())):
        _refuse("s", "floating point and dense in memory", s)
    _row("bits", bits, s, uint8, (s.numel() + 7) // 8)
