"""``with snnfast.monitor(model) as m:``: what every layer of neurons does, while the model runs."""

import math
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from snnfast.monitoring import pictures
from snnfast.monitoring.record import LayerRecord
from snnfast.nn.neuron import BaseNeuron
from snnfast.nn.stateful import Stateful

KEPT = ("spikes", "v")


def monitor(
    model: nn.Module,
    *,
    layers: Iterable[str] | None = None,
    every: int = 10,
    keep: "str | Iterable[str] | None" = None,
) -> "Monitor":
    """Watches the neurons of ``model`` inside a ``with`` block; the block's value has the records.

    Of each layer and timestep, added up over the calls: the firing rate; the share of neurons that
    never fired (dead) and of those that always did (saturated); mean and deviation of the
    potential behind each step and of the gradient that reaches the spikes. Spikes are counted in
    every call, by one pass that reads them; potentials and gradients in the first call and each
    ``every``-th behind it, since they cost more: a layer writes its potentials out for that. No
    activation stays alive by it, and spikes and gradients are those without it. A neuron that takes
    one timestep a call has its calls within a forward of ``model`` as timesteps.

    Layers are the neurons of ``snnfast.nn``, also within a ``BatchNormLIF`` or behind
    ``snnfast.nn.fuse``, and those of SpikingJelly and snnTorch, accelerated or not. Theirs are seen
    from outside: potentials are what the module holds behind a call, the last timestep alone, which
    is then said, unless it stores all (SpikingJelly's ``store_v_seq=True``). What is computed again
    in backward is not counted twice.

    Args:
        model: any module that has neurons, called in the block as often as you like. Under
            DistributedDataParallel every rank records its own samples.
        layers: names of modules, as ``named_modules`` has them, instead of all neurons; of any
            module whose output, or the first of it, is spikes [T, B, ...].
        every: in calls, >= 1 (of ``model``, where a neuron takes one timestep); 1 samples each.
        keep: of the last call of each layer: "spikes", as bits, for ``raster``; "v", the potentials
            [T, ...], for ``potential``; or both in a list. Choose ``layers`` for large models.

    Returns a :class:`Monitor`.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no neurons or no layer of that name, is watched already, or is compiled
            (monitor the module itself, uncompiled); or another argument is not one of the above.

    Example:
        >>> with snnfast.monitor(model) as m:
        ...     train_an_epoch(model)
        >>> print(m.table())
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"monitor: model must be a torch module, got {type(model).__name__}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"monitor: every must be an int >= 1, got {every!r}")
    keep = (keep,) if isinstance(keep, str) else tuple(keep or ())
    for kept in keep:
        if kept not in KEPT:
            raise ValueError(f"monitor: keep must be among {', '.join(KEPT)}, got {kept!r}")
    return Monitor(model, _chosen(model, layers), every, keep)


def _chosen(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    # By what torch.compile leaves: its class would bring in the compiler, which takes seconds.
    if any("_orig_mod" in m._modules or m._compiled_call_impl for m in modules.values()):
        raise ValueError("monitor: model must not be compiled, got a compiled module")
    if names is None:
        found = {name: module for name, module in modules.items() if _is_neuron(module)}
        if not found:
            raise ValueError("monitor: model must have neurons, got none; name its layers")
        return found
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in modules:
            raise ValueError(f"monitor: layers must be names of its modules, got {name!r}")
    return {name: _within(modules[name]) for name in names}


def _is_neuron(module: nn.Module) -> bool:
    if isinstance(module, Stateful):
        return True
    # By what SpikingJelly's and snnTorch's neurons have.
    names = (("v_threshold", "surrogate_function"), ("threshold", "spike_grad"))
    return any(all(hasattr(module, name) for name in pair) for pair in names)


def _one_step(module: nn.Module) -> bool:
    """Whether a call of somebody's neuron is one timestep."""
    many = not _is_neuron(module) or type(module).__name__.startswith("MultiStep")
    return getattr(module, "step_mode", "m" if many else "s") == "s"


def _within(module: nn.Module) -> nn.Module:
    """The neuron of a ``BatchNormLIF`` or the like, which is where potentials are."""
    neuron = getattr(module, "neuron", None)
    return neuron if isinstance(neuron, Stateful) else module


class Monitor:
    """The records of a ``with snnfast.monitor(...)`` block, during it and afterwards.

    ``layers``: {name: record}, in the order of the model; a record has ``rate`` (float64 [T]),
    ``mean_rate``, ``dead``, ``saturated``, ``v.mean``, ``v.std``, ``gradient.mean``,
    ``gradient.std`` (float64 [T], None where nothing was seen) and ``calls``.
    """

    def __init__(self, model: nn.Module, modules: dict, every: int, keep: tuple[str, ...]):
        self._model, self._modules, self._every, self._keep = model, modules, every, keep
        self._undo: list[Callable] = []
        self._cleared = False  # of something
        self.layers = {
            name: LayerRecord(name, type(module).__name__) for name, module in modules.items()
        }

    def __enter__(self) -> "Monitor":
        if any(isinstance(m, Stateful) and m._watch is not None for m in self._modules.values()):
            raise ValueError("monitor: model must not be watched already, got a nested block")
        watches = []
        for name, module in self._modules.items():
            watch = _Watch(self.layers[name], self._every, self._keep)
            if isinstance(module, Stateful):
                module._watch = watch
                self._undo.append(lambda module=module: vars(module).pop("_watch", None))
            else:
                watch.single = _one_step(module)
                watches += [watch] if watch.single else []
                self._undo.append(module.register_forward_hook(watch.behind).remove)
        if watches:

            def begin(*_) -> None:
                for watch in watches:
                    watch.begin()

            self._undo.append(self._model.register_forward_pre_hook(begin).remove)
        return self

    def __exit__(self, kind, *_) -> None:
        while self._undo:
            self._undo.pop()()
        if kind is None and not self._seen():
            warnings.warn(
                "monitor: no call of a layer was seen in the block: what torch.compile has "
                "compiled is not; call the module itself",
                stacklevel=2,
            )

    def _seen(self) -> bool:
        return self._cleared or any(record.calls for record in self.layers.values())

    def clear(self) -> None:
        """Forget what was recorded; what comes next is added up anew."""
        self._cleared = self._seen()
        for record in self.layers.values():
            record.clear()

    def scalars(self) -> dict[str, float]:
        """All that is known as numbers, over all timesteps, for TensorBoard and the like: under
        "rate/LAYER", and so on for dead, saturated, v_mean, v_std, gradient_mean, gradient_std;
        v_last_mean and v_last_std instead where only V behind the last timestep was seen."""
        found = {}
        for name, record in self.layers.items():
            numbers = {"rate": record.mean_rate}
            numbers |= {"dead": record.dead, "saturated": record.saturated}
            for what, moments in (("v", record.v), ("gradient", record.gradient)):
                mean, std = moments.overall
                what += "_last" * moments.last_alone
                numbers |= {f"{what}_mean": mean, f"{what}_std": std}
            found |= {f"{k}/{name}": v for k, v in numbers.items() if math.isfinite(v)}
        return found

    def table(self) -> str:
        """A line per layer: calls, rate, dead and saturated share, and potential and gradient over
        all timesteps, or "(last step)"."""
        return pictures.table(self.layers)

    def rates(self, ax=None):
        """The firing rate of every layer at every timestep, as an image; returns its Axes."""
        return pictures.rates(self.layers, ax)

    def raster(self, layer: str, *, sample: int = 0, neurons: int = 200, ax=None):
        """The spikes of the first ``neurons`` neurons of a layer in the last call, for one
        ``sample`` of the batch; returns Axes. Needs ``keep="spikes"``."""
        record = self._kept("raster", layer, "spikes")
        return pictures.raster(record, _sample("raster", record.kept_spikes(), sample), neurons, ax)

    def potential(self, layer: str, neuron: int, *, sample: int = 0, ax=None):
        """V behind every step of the last call of one neuron, numbered within its sample, with the
        threshold; returns Axes. Needs ``keep="v"``."""
        record = self._kept("potential", layer, "v")
        if record.v.last_alone:
            raise ValueError(
                f"potential: layer {layer!r} must store V of all timesteps, got the last alone; a "
                "SpikingJelly neuron does with store_v_seq=True"
            )
        trace = _sample("potential", record.potential, sample)
        if not 0 <= neuron < trace.shape[1]:
            raise ValueError(f"potential: neuron must be 0 to {trace.shape[1] - 1}, got {neuron}")
        return pictures.potential(record, trace[:, neuron], neuron, ax)

    def _kept(self, who: str, layer: str, what: str) -> LayerRecord:
        if layer not in self.layers:
            raise ValueError(f"{who}: layer must be one of {', '.join(self.layers)}, got {layer!r}")
        record = self.layers[layer]
        if what not in self._keep:
            raise ValueError(f"{who}: keep must have {what!r}, got {list(self._keep)}")
        if (record.spikes if what == "spikes" else record.potential) is None:
            raise ValueError(f"{who}: layer {layer!r} must have been called in the block")
        return record


def _sample(who: str, values: Tensor, sample: int) -> Tensor:
    """[T, neurons] of one sample of [T, B, ...] (or of [T, N])."""
    values = values[:, None] if values.dim() == 2 else values
    if not 0 <= sample < values.shape[1]:
        raise ValueError(f"{who}: sample must be 0 to {values.shape[1] - 1}, got {sample}")
    return values[:, sample].flatten(1).cpu()


class _Watch:
    """What looks at the calls of one layer."""

    def __init__(self, record: LayerRecord, every: int, keep: tuple[str, ...]):
        self._record, self._every, self._keep = record, every, keep
        self._calls = 0
        self.single, self._step = False, None  # None: outside of the model's forward

    def begin(self) -> None:
        """Before a forward of the model: what takes one timestep a call begins with the first."""
        if not _repeated():
            self._calls, self._step = self._calls + 1, 0

    def __call__(self, neuron: Stateful, op: Callable, time_first: Callable) -> Callable:
        """``op(state, return_state)`` of a neuron of ours, watched."""

        def watched(state, return_state):
            if _repeated() or neuron._replayed:
                return op(state, return_state)
            sampled = self._next()
            with_v = sampled or "v" in self._keep
            asked = "all" if with_v else return_state
            result = op(state, asked)
            s, v = result if asked else (result, None)
            first = s[0] if isinstance(s, tuple) else s
            self._look(neuron, first, sampled, time_first, not isinstance(neuron, BaseNeuron))
            if with_v:
                self._look_at_v(time_first(v[0] if isinstance(v, tuple) else v), sampled)
                if return_state and return_state != "all":
                    v = _last(v, time_first, state)
            return (s, v) if return_state else s

        return watched

    def behind(self, module: nn.Module, args: tuple, output) -> None:
        """A forward hook, for modules of other packages."""
        if _repeated():
            return
        at, inside = 0, self._step is not None
        if inside:
            at, self._step = self._step, self._step + 1
        sampled = (self._calls - 1) % self._every == 0 if inside else self._next()
        s, *others = output if isinstance(output, tuple) else (output,)
        time_first = (lambda t: t[None]) if self.single else (lambda t: t)
        self._look(module, s, sampled, time_first, signed=True, at=at)
        if not (sampled or "v" in self._keep):
            return
        every = getattr(module, "v_seq", None)
        if isinstance(every, Tensor) and every.shape == s.shape and not self.single:
            self._look_at_v(every, sampled)
            return
        found = (getattr(module, "v", None), getattr(module, "mem", None), *others[-1:])
        v = next((v for v in found if isinstance(v, Tensor) and v.dim()), None)
        if v is not None:
            self._record.v.last_alone |= not self.single and len(s) > 1
            self._look_at_v(v[None], sampled, at if self.single else len(s) - 1)

    def _next(self) -> bool:
        self._calls += 1
        return (self._calls - 1) % self._every == 0

    def _look(
        self, module: nn.Module, s: Tensor, sampled: bool, time_first: Callable, signed: bool, at=0
    ) -> None:
        record = self._record
        record.add_spikes(time_first(s), signed, at)
        if "spikes" in self._keep:
            record.keep_spikes(time_first(s), at)
        if "v" in self._keep:
            found = getattr(module, "v_threshold", getattr(module, "threshold", None))
            single = isinstance(found, Tensor) and found.numel() == 1
            record.threshold = float(found) if single or isinstance(found, (int, float)) else None
        if sampled and s.requires_grad:
            moments = record.gradient
            s.register_hook(lambda gradient: moments.add(time_first(gradient), at))

    def _look_at_v(self, v: Tensor, sampled: bool, at: int = 0) -> None:
        record, single = self._record, self.single
        if sampled:
            record.v.add(v, at)
        if "v" in self._keep:
            v = v.detach().clone()
            record.potential = torch.cat([record.potential, v]) if single and at else v


def _repeated() -> bool:
    """Whether a forward is computed again in backward, or compiled."""
    return torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1


def _last(v, time_first: Callable, state):
    """The state after the last step, out of those after every step."""
    if isinstance(v, tuple):
        starts = state if isinstance(state, tuple) else (state,) * len(v)
        return tuple(_last(one, time_first, start) for one, start in zip(v, starts))
    steps = time_first(v)
    return steps[-1].clone() if len(steps) else state
