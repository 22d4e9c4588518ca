"""Distillation losses in C++: value and gradient in one call."""

import torch
from torch import Tensor

from snnfast.backends.cpu.launch import module, pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import StepwiseLoss, TssdLoss, as_bytes


def _problem(logits: Tensor, target: Tensor, other: Tensor | None) -> tuple:
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


def stepwise_loss(
    loss: StepwiseLoss,
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | None,
    value: Tensor,
    terms: Tensor,
    unit: Tensor,
    gradient: Tensor | None,
) -> int | None:
    outputs = (value.data_ptr(), terms.data_ptr(), unit.data_ptr(), pointer(gradient))
    return module().stepwise_loss(
        as_bytes(loss), *_problem(logits, target, teacher_logits), *outputs
    )


def tssd_loss(
    loss: TssdLoss,
    logits: Tensor,
    target: Tensor,
    aux_logits: Tensor | None,
    value: Tensor,
    terms: Tensor,
    unit: Tensor,
    gradient: Tensor | None,
    aux_gradient: Tensor | None,
) -> int | None:
    outputs = (value.data_ptr(), terms.data_ptr(), unit.data_ptr(), pointer(gradient))
    problem = _problem(logits, target, aux_logits)
    return module().tssd_loss(as_bytes(loss), *problem, *outputs, pointer(aux_gradient))


def scale_gradient(gradient: Tensor, grad_output: Tensor, unit: Tensor, scaled: Tensor) -> None:
    module().scale_gradient(
        DTYPES[gradient.dtype],
        torch.get_num_threads(),
        gradient.numel(),
        gradient.data_ptr(),
        grad_output.data_ptr(),
        unit.data_ptr(),
        scaled.data_ptr(),
    )
