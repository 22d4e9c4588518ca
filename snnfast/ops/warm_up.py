"""``warm_up``: the kernels of a step compiled beforehand, by several processes side by side."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from snnfast.ops import validation as check
from snnfast.ops.attributes import Attributes


@contextmanager
def left_alone(model: nn.Module, device: torch.device) -> Iterator[None]:
    """In the block the model has copies of its buffers; behind it all attributes of its modules,
    and torch's random state, are what they were."""
    modules = list(model.modules())
    before = Attributes(modules)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for module in modules:
                vars(module)["_buffers"] = {
                    name: None if buffer is None else buffer.clone()
                    for name, buffer in module._buffers.items()
                }
            yield
        finally:
            before.restore()


def _train(model: nn.Module, inputs: tuple, loss: Callable | None) -> None:
    """Forward and backward; gradients are accumulated nowhere."""
    with torch.enable_grad():
        outputs = model(*inputs)
        outputs = outputs if loss is None else loss(outputs)
    tensors = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
    wanted = [t for t in (*inputs, *model.parameters()) if t.requires_grad]
    if tensors and wanted:
        gradients = [torch.ones_like(t) for t in tensors]
        torch.autograd.grad(tensors, wanted, gradients, allow_unused=True)


def warm_up(
    model: nn.Module,
    example: "Tensor | tuple[Tensor, ...]",
    *,
    loss: Callable | None = None,
    workers: int | None = None,
) -> int:
    """Compiles the Triton kernels of a training step and of an evaluation, before the first.

        >>> with torch.autocast("cuda", torch.bfloat16), snnfast.packed_spikes():
        ...     snnfast.warm_up(model, images, loss=lambda logits: criterion(logits, targets))

    A first step otherwise compiles what it meets, one kernel after another. Here the model runs
    once forward and backward, as it is, and once forward in evaluation mode, on ``example``;
    kernels that are new are not launched but noted, compiled by several processes into Triton's
    folder, where later runs find them, and loaded. The values that this run computes mean nothing.
    Afterwards parameters, their gradients, buffers (running statistics among them), modes, the
    attributes of modules and torch's random state are what they were.

    Kernels depend on dtypes, memory layouts, T and channels, hardly on the size of the batch: call
    it under the autocast, ``packed_spikes`` and ``backend`` of the step, with an input of its
    shape, layout, dtype and device, while nothing else runs a layer of snnfast.

    Args:
        model: a module; of DistributedDataParallel, what it wraps.
        example: its input, or a tuple of its inputs.
        loss: of the model's output, gives a tensor or several; None: all outputs get a gradient.
        workers: processes; None: as many as there are cores, of which several ranks on one machine
            should each name a part. 1 compiles in this one.

    Returns:
        How many kernels are new: 0 where all were known, or no layer runs on Triton. Where there is
        no CUDA device it does nothing and a warning says so.

    Raises:
        TypeError, ValueError: ``warm_up: <argument> must be ..., got ...``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"warm_up: model must be a torch module, got {check.type_name(model)}")
    inputs = example if isinstance(example, tuple) else (example,)
    for t in inputs:
        if not isinstance(t, Tensor):
            raise TypeError(
                f"warm_up: example must be a tensor or a tuple of them, got {check.type_name(t)}"
            )
    if not inputs:
        raise ValueError("warm_up: example must be a tensor or a tuple of them, got ()")
    if loss is not None and not callable(loss):
        raise TypeError(f"warm_up: loss must be a function or None, got {check.type_name(loss)}")
    if workers is not None:
        check.check_int("warm_up", "workers", workers, 1)
    from snnfast.backends.triton import ahead, launch

    reason = launch.compiles_nothing()
    if reason is not None:
        warnings.warn(f"warm_up: there is nothing to compile: {reason}", stacklevel=2)
        return 0
    if isinstance(model, DistributedDataParallel):
        model = model.module
    with launch.noting() as noted:
        with left_alone(model, inputs[0].device):
            _train(model, inputs, loss)
        with left_alone(model, inputs[0].device), torch.no_grad():
            model.eval()(*inputs)
    return ahead.compile_and_load(noted, workers)
