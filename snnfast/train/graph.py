"""``graphed``: a whole step of training as one CUDA graph.

The host then launches one thing a step, not thousands. What the host decides in a step (shapes,
branches, Python's numbers) it decides once, when the graph is captured.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

WARMUP = 3


def _why_not(inputs: tuple) -> str | None:
    """Why no graph can be made of a step with such inputs."""
    for t in inputs:
        if not isinstance(t, Tensor):
            return f"its inputs must be tensors, got {type(t).__name__}"
        if t.device.type != "cuda":
            return f"its inputs must be on a CUDA device, got {t.device.type}"
        if t.requires_grad:
            return "its inputs must not require gradient"
    return None if inputs else "it has no inputs"


class Graphed:
    """What :func:`graphed` returns. ``reason``: why steps run as they are, None where they do
    not."""

    def __init__(self, step: Callable, warmup: int = WARMUP, undo: Callable | None = None):
        self.step, self.warmup, self.undo = step, warmup, undo
        self.reason: str | None = None
        self._graph = None
        self._form, self._left = None, warmup

    def __call__(self, *inputs: Tensor):
        if self.reason is None and self._graph is None:
            self._refuse(_why_not(inputs))
        if self.reason is not None:
            return self.step(*inputs)
        form = [(t.shape, t.stride(), t.dtype, t.device) for t in inputs]
        if self._graph is None:
            if form != self._form:
                self._form, self._left = form, self.warmup
            if self._left:
                self._left -= 1
                return self._warm_up(inputs)
            self._refuse(self._capture(inputs))
        if self._graph is None or form != self._form:
            return self.step(*inputs)
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new)
        self._graph.replay()
        return tree_map_only(Tensor, Tensor.clone, self._outputs)

    def _warm_up(self, inputs):
        """As it is, on a stream of its own, where nothing of another is captured later."""
        side, here = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            outputs = self.step(*inputs)
        here.wait_stream(side)
        return outputs

    def _capture(self, inputs) -> str | None:
        """Why not, where it fails. Capturing runs nothing: the replay that follows is this call's
        step."""
        self._inputs = [t.clone() for t in inputs]
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Of this thread: those that load data may allocate meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._outputs = self.step(*self._inputs)
        except Exception as error:  # whatever cannot be captured
            torch.cuda.set_stream(here)  # a capture that fails leaves its own
            self._inputs = None
            return f"it cannot be captured: {error.__context__ or error}"
        self._graph = graph
        return None

    def _refuse(self, reason: str | None) -> None:
        if reason is None:
            return
        self.reason = reason.splitlines()[0]
        if self.undo is not None:
            self.undo()
        warnings.warn(f"graphed: the step runs without a graph: {self.reason}", stacklevel=3)


def graphed(step: Callable, *, warmup: int = WARMUP) -> Graphed:
    """``step`` as one CUDA graph, where that can be.

        >>> rate = torch.zeros((), device="cuda")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, fused=True)
        >>> def step(images, targets):
        ...     loss = criterion(model(images), targets)
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     return loss.detach()
        >>> step = snnfast.train.graphed(step)
        >>> for n, (images, targets) in enumerate(loader):
        ...     rate.fill_(schedule(n))
        ...     loss = step(images.cuda(), targets.cuda())

    Its first ``warmup`` calls run as they are; the next one is captured, and from then on every
    call with inputs of that form (shape, strides, dtype) copies them to where the graph reads and
    replays it. Other forms, the last batch of an epoch say, run as they are. What it returns
    (tensors, in dicts, lists or tuples) is the caller's, a copy.

    Captured is the whole of ``step``: forward, backward, gradient scaling and clipping, the
    optimiser, averages of weights. It must read no number (``loss.item()``), copy nothing from the
    host, and leave no gradients behind. Python's numbers are what they were at the capture: what
    changes must be a tensor on the device, such as the learning rate of a fused optimiser. Modules
    that draw random numbers on the device go on drawing. Modes (``train``, ``eval``) are those of
    the capture. Optimisers and weights may change in place between calls, but not be replaced.

    Where ``step`` cannot be captured (on a CPU, or when it reads a number), every call runs it as
    it is, a warning says why, and so does ``reason``. What a capture that failed has changed in
    Python (gradients, the state of a GradScaler) is the caller's to put right.

    Raises:
        TypeError: ``step`` cannot be called.
        ValueError: ``warmup`` is not 1 or more: what is compiled or allocated at the first call
            cannot be captured.
    """
    if not callable(step):
        raise TypeError(f"graphed: step must be a function, got {type(step).__name__}")
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
        raise ValueError(f"graphed: warmup must be an int >= 1, got {warmup!r}")
    return Graphed(step, warmup)
