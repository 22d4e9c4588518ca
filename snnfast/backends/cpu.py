"""The C++ backend: tensors to pointers to snnfast._C. The interface is that of all backends.

Every timestep of ``x`` is dense in memory and all other tensors share its layout within a step;
the callers in ``snnfast.ops`` see to that, and to dtypes, devices and shapes. To run the kernels on
outputs of your own, call ``lif_forward`` and ``lif_backward`` with contiguous tensors.
"""

import functools

import torch
from torch import Tensor

from snnfast.backends.contract import checked
from snnfast.backends.spec import LifSpec, Norm, StepwiseSpec, TssdSpec

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


@functools.cache
def _module():
    # torch first: it brings the OpenMP runtime that the module then shares.
    from snnfast import _C

    return _C


@functools.cache
def available() -> str | None:
    """None where the backend can be used, else what was tried and what enables it."""
    try:
        _module()
    except ImportError as error:
        return f"{error}; build it: pip install -e . in snnfast's checkout"
    return None


def instruction_set() -> str:
    """Which of the compiled instruction sets this machine runs."""
    return _module().instruction_set()


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@checked
def lif_forward(
    spec: LifSpec,
    x: Tensor,
    v0: Tensor | None,
    rate: Tensor | None,
    s: Tensor,
    v: Tensor | None = None,
    borders: Tensor | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> None:
    """Spikes ``s`` [T, ...] of ``x`` [T, ...]; fills ``v`` [...] or [T, ...] and ``borders``.

    With ``norm``, x is normalised and ``residual`` [T, ...] added on the way in. Moves 2b bytes per
    neuron and timestep, b those of the dtype; 3b with a residual.
    """
    _module().lif_forward(
        spec,
        DTYPES[x.dtype],
        torch.get_num_threads(),
        s.numel() // spec.steps,
        _pointer(rate),
        x.data_ptr(),
        x.stride(0),
        _pointer(v0),
        s.data_ptr(),
        _pointer(v),
        v is not None and v.dim() == x.dim(),
        _pointer(borders),
        _norm(norm, residual),
    )


@checked
def lif_backward(
    spec: LifSpec,
    x: Tensor,
    v0: Tensor | None,
    rate: Tensor | None,
    borders: Tensor | None,
    ds: Tensor | None,
    dv: Tensor | None,
    dx: Tensor,
    dv0: Tensor | None = None,
    drate: Tensor | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """Gradient ``dx`` [T, ...], or its sum over time where it has no time axis; fills ``dv0`` and
    ``drate``, the gradient of 1/tau.

    With ``norm``, dx is the gradient of what the neurons are charged with, and ``sums`` [2, C] gets
    the sums of dx and of dx (x - mean) over each channel. Moves 3b bytes per neuron and timestep, b
    those of the dtype; 4b with a residual.
    """
    _module().lif_backward(
        spec,
        DTYPES[x.dtype],
        torch.get_num_threads(),
        dx.numel() if dx.dim() < x.dim() else dx.numel() // spec.steps,
        _pointer(rate),
        x.data_ptr(),
        x.stride(0),
        _pointer(v0),
        _pointer(borders),
        _pointer(ds),
        0 if ds is None else ds.stride(0),
        _pointer(dv),
        dv is not None and dv.dim() == x.dim(),
        dx.data_ptr(),
        dx.dim() < x.dim(),
        _pointer(dv0),
        _pointer(drate),
        _norm(norm, residual),
        _pointer(sums),
    )


def _norm(norm: Norm | None, residual: Tensor | None) -> tuple | None:
    if norm is None:
        return None
    rows = (norm.mean.data_ptr(), norm.scale.data_ptr(), norm.bias.data_ptr())
    step = 0 if residual is None else residual.stride(0)
    return *rows, _pointer(residual), step, norm.channels, norm.inner


@checked
def norm_stats(y: Tensor, channels: int, inner: int, mean: Tensor, var: Tensor) -> None:
    """Mean and biased variance [C] over the steps and neurons of y [T, ...]; b bytes an element."""
    _module().norm_stats(
        DTYPES[y.dtype],
        torch.get_num_threads(),
        y.shape[0],
        y.numel() // y.shape[0],
        y.data_ptr(),
        y.stride(0),
        channels,
        inner,
        mean.data_ptr(),
        var.data_ptr(),
    )


@checked
def norm_backward(
    y: Tensor, dx: Tensor, norm: Norm, a: Tensor, b: Tensor, c: Tensor, dy: Tensor
) -> None:
    """dy = a dx + b (y - mean) + c, [T, ...] and [C]; dy may be dx. 3b bytes an element."""
    _module().norm_backward(
        DTYPES[y.dtype],
        torch.get_num_threads(),
        y.shape[0],
        y.numel() // y.shape[0],
        y.data_ptr(),
        y.stride(0),
        dx.data_ptr(),
        dy.data_ptr(),
        norm.channels,
        norm.inner,
        norm.mean.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        c.data_ptr(),
    )


@checked
def norm_prepare(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
    unbias: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """inv_std = 1 / sqrt(var + eps) and weight * inv_std, [C]; ``running``, a mean and a variance,
    take a share ``momentum`` of mean and of var * unbias."""
    inv_std = torch.empty_like(mean)
    scale = inv_std if weight is None else torch.empty_like(mean)
    running_mean, running_var = running or (None, None)
    _module().norm_prepare(
        DTYPES[mean.dtype],
        mean.numel(),
        mean.data_ptr(),
        var.data_ptr(),
        _pointer(weight),
        _pointer(running_mean),
        _pointer(running_var),
        momentum,
        unbias,
        eps,
        inv_std.data_ptr(),
        scale.data_ptr(),
    )
    if running is not None:
        torch.autograd.graph.increment_version(running)
    return inv_std, scale


@checked
def norm_finish(
    sums: Tensor, scale: Tensor, inv_std: Tensor, count: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of weight and bias [C] from the ``sums`` [2, C] of ``lif_backward``, and b and
    c of ``norm_backward`` for statistics of ``count`` values, or for constant ones."""
    results = tuple(torch.empty_like(scale) for _ in range(4))
    _module().norm_finish(
        DTYPES[sums.dtype],
        scale.numel(),
        sums.data_ptr(),
        scale.data_ptr(),
        inv_std.data_ptr(),
        count or 0,
        *(tensor.data_ptr() for tensor in results),
    )
    return results


def _problem(logits: Tensor, target: Tensor, other: Tensor | None) -> tuple:
    """What both losses begin with: sizes, logits, labels or class probabilities, and ``other``, the
    teacher's logits [B, C] or auxiliary ones [T, B, C]."""
    soft = target.dtype != torch.int64
    at = target.data_ptr()
    labels = (0, at, DTYPES[target.dtype]) if soft else (at, 0, 0)
    others = (0, 0, (0, 0, 0))
    if other is not None:
        stride = other.stride()
        others = (
            other.data_ptr(),
            DTYPES[other.dtype],
            stride if len(stride) == 3 else (0, *stride),
        )
    sizes = (torch.get_num_threads(), *logits.shape)
    return *sizes, logits.data_ptr(), DTYPES[logits.dtype], logits.stride(), *labels, *others


@checked
def stepwise_loss(
    spec: StepwiseSpec,
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | None,
    loss: Tensor,
    terms: Tensor,
    unit: Tensor,
    gradient: Tensor | None,
) -> int | None:
    """Fills ``loss``, ``terms`` [4], ``unit``, ``gradient``; or returns a label that is no class.

    Reads the logits once and writes the gradient once: 2b bytes per logit, b those of the dtype.
    """
    outputs = (loss.data_ptr(), terms.data_ptr(), unit.data_ptr(), _pointer(gradient))
    return _module().stepwise_loss(spec, *_problem(logits, target, teacher_logits), *outputs)


@checked
def tssd_loss(
    spec: TssdSpec,
    logits: Tensor,
    target: Tensor,
    aux_logits: Tensor | None,
    loss: Tensor,
    terms: Tensor,
    unit: Tensor,
    gradient: Tensor | None,
    aux_gradient: Tensor | None,
) -> int | None:
    """Fills ``loss``, ``terms`` [3], ``unit`` and the gradients, as ``stepwise_loss`` does."""
    outputs = (loss.data_ptr(), terms.data_ptr(), unit.data_ptr(), _pointer(gradient))
    problem = _problem(logits, target, aux_logits)
    return _module().tssd_loss(spec, *problem, *outputs, _pointer(aux_gradient))


@checked
def scale_gradient(gradient: Tensor, grad_output: Tensor, unit: Tensor, scaled: Tensor) -> None:
    """scaled = gradient * (grad_output * unit); 2b bytes per element."""
    _module().scale_gradient(
        DTYPES[gradient.dtype],
        torch.get_num_threads(),
        gradient.numel(),
        gradient.data_ptr(),
        grad_output.data_ptr(),
        unit.data_ptr(),
        scaled.data_ptr(),
    )


def _pack(s: Tensor, bits: Tensor, only_if_spikes: bool) -> bool:
    return _module().pack_spikes(
        DTYPES[s.dtype],
        torch.get_num_threads(),
        s.numel(),
        s.data_ptr(),
        bits.data_ptr(),
        only_if_spikes,
    )


@checked
def pack_spikes(s: Tensor, bits: Tensor) -> None:
    """Fills ``bits`` [ceil(N / 8)] with those of the dense ``s``, in the order of its memory.

    Moves b + 1/8 bytes per element, b those of the dtype.
    """
    _pack(s, bits, False)


@checked
def pack_if_spikes(s: Tensor, bits: Tensor) -> bool:
    """The same; False at the first element that is neither +0 nor 1, and then ``bits`` is none."""
    return _pack(s, bits, True)


@checked
def unpack_spikes(bits: Tensor, s: Tensor) -> None:
    """Fills the dense ``s`` with 0 and 1; b + 1/8 bytes per element."""
    _module().unpack_spikes(
        DTYPES[s.dtype], torch.get_num_threads(), s.numel(), bits.data_ptr(), s.data_ptr()
    )
