"""The interface of a backend: what each function computes, moves and may rely on.

``ops`` hands over tensors that are laid out as asked for here and reads ``Backend``'s capabilities,
never its name. Every call goes through a check of its tensors (``checks``) before they turn into
addresses. Steps are dense, whatever the order of their axes, and all tensors share x's layout
within a step; states are float32 (float64 for float64); b are the bytes of x's dtype.
"""

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor, dtype

from snnfast.backends import checks
from snnfast.backends.spec import (
    Finished,
    LifLayer,
    NeuronLayer,
    Norm,
    Prepared,
    StepwiseLoss,
    TssdLoss,
)


class Backend:
    """One implementation of the ops. ``functions``: a module with the functions below, unchecked;
    ``available()`` gives None or one sentence that says how to enable it."""

    def __init__(self, functions: ModuleType, *, recomputes_dx: tuple[dtype, ...] = ()):
        self.unchecked = functions
        """The functions themselves, for tensors that were checked or made just now."""
        self.recomputes_dx = recomputes_dx
        """Of which dtypes memory is slow and arithmetic is not: ``norm_lif_dy`` computes the
        gradient of X again instead of reading what the first pass wrote, 5b bytes an element
        instead of 6b."""

    def available(self) -> str | None:
        return self.unchecked.available()

    def details(self) -> str:
        """How it was built, for ``snnfast info``."""
        return self.unchecked.details()

    def lif_forward(
        self, layer: LifLayer, x: Tensor, v0: Tensor | None, rate: Tensor | None, s: Tensor,
        v: Tensor | None = None, borders: Tensor | None = None, norm: Norm | None = None,
        residual: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Fills the spikes ``s`` [T, ...] of ``x`` [T, ...], any time stride (0: static); ``v``
        [...] after the last step, or [T, ...] after each; ``borders`` [ceil(T / 8) - 1, ...], V
        after every eighth step.

        ``rate``: [] or [C], instead of the layer's. With ``norm`` x is normalised, and ``residual``
        [T, ...] added, on the way in. Moves 2b bytes per neuron and timestep; 3b with a residual.
        """
        checks.lif_forward(layer, x, v0, rate, s, v, borders, norm, residual)
        self.unchecked.lif_forward(layer, x, v0, rate, s, v, borders, norm, residual)

    def lif_backward(
        self, layer: LifLayer, x: Tensor, v0: Tensor | None, rate: Tensor | None,
        borders: Tensor | None, ds: Tensor | None, dv: Tensor | None, dx: Tensor | None,
        dv0: Tensor | None = None, drate: Tensor | None = None, norm: Norm | None = None,
        residual: Tensor | None = None, sums: Tensor | None = None,
        finished: Finished | None = None,
    ) -> None:  # fmt: skip
        """Fills ``dx`` [T, ...], or its sum over time where it has no time axis; ``dv0`` [...];
        ``drate``, the gradient of 1/tau, deterministic.

        ``ds`` has any time stride; ``dv`` is [...] or [T, ...]. With ``norm``, dx is the gradient
        of X, what the neurons are charged with (None where it is not wanted), and ``sums`` [2, C]
        gets the sums of dX and of dX (x - mean) over each channel; with ``finished`` what follows
        from them, too, in the launch that ends their reduction. Moves 3b bytes per neuron and
        timestep; 4b with a residual.
        """
        arguments = (layer, x, v0, rate, borders, ds, dv, dx, dv0, drate, norm, residual, sums)
        checks.lif_backward(*arguments, finished)
        self.unchecked.lif_backward(*arguments, finished)

    def neuron_forward(
        self, layer: NeuronLayer, inputs: Sequence[Tensor], states: Sequence[Tensor | None],
        params: Sequence[Tensor], outputs: Sequence[Tensor], new_states: Sequence[Tensor] = (),
        borders: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Runs ``layer.step.forward`` over ``inputs`` [T, ...], any time stride each (0: static),
        from ``states`` [...] (None: the layer's rest): fills ``outputs`` [T, ...];
        ``new_states``, all or none of them, [...] after the last step or [T, ...] after each;
        ``borders`` [states, ceil(T / 8) - 1, ...], the states after every eighth step.

        ``params``: [] or [C], contiguous. All arithmetic in the state's dtype, no operations
        contracted. Moves b bytes for each input and output, neuron and timestep.
        """
        arguments = (layer, inputs, states, params, outputs, new_states, borders)
        checks.neuron_forward(*arguments)
        self.unchecked.neuron_forward(*arguments)

    def neuron_backward(
        self, layer: NeuronLayer, inputs: Sequence[Tensor], states: Sequence[Tensor | None],
        params: Sequence[Tensor], borders: Tensor | None, douts: Sequence[Tensor | None],
        dstates: Sequence[Tensor | None], dinputs: Sequence[Tensor | None],
        dstates0: Sequence[Tensor | None], dparams: Sequence[Tensor | None],
    ) -> None:  # fmt: skip
        """Recomputes segments of 8 steps with ``layer.step.advance`` and walks back through each
        with ``layer.step.adjoint``: fills ``dinputs`` [T, ...], or the sum over time where it has
        no time axis, ``dstates0`` [...] and ``dparams`` (sums over neurons and steps, in the
        params' shapes, deterministic); None: not wanted.

        ``douts`` [T, ...], any time stride, and ``dstates``, [...] of the last state or [T, ...] of
        each; None: 0.
        """
        arguments = (layer, inputs, states, params, borders, douts, dstates, dinputs, dstates0,
                     dparams)  # fmt: skip
        checks.neuron_backward(*arguments)
        self.unchecked.neuron_backward(*arguments)

    def norm_lif_dy(
        self, layer: LifLayer, x: Tensor, v0: Tensor | None, rate: Tensor | None,
        borders: Tensor | None, ds: Tensor | None, dv: Tensor | None, dy: Tensor, norm: Norm,
        a: Tensor, b: Tensor, c: Tensor,
    ) -> None:  # fmt: skip
        """dy = a dX + b (x - mean) + c, with the dX that ``lif_backward`` has for the same
        arguments computed again, not read; dy has no time axis where x is static. 3b bytes an
        element. Only of dtypes in ``recomputes_dx``."""
        arguments = (layer, x, v0, rate, borders, ds, dv, dy, norm, a, b, c)
        checks.norm_lif_dy(*arguments)
        self.unchecked.norm_lif_dy(*arguments)

    def norm_stats(
        self, y: Tensor, channels: int, inner: int, mean: Tensor, var: Tensor,
        prepared: Prepared | None = None,
    ) -> None:  # fmt: skip
        """Mean and biased variance [C] over the steps and neurons of y [T, ...]; with ``prepared``
        what ``norm_prepare`` makes of them, in the launch that ends the reduction. b bytes an
        element."""
        checks.norm_stats(y, channels, inner, mean, var, prepared)
        self.unchecked.norm_stats(y, channels, inner, mean, var, prepared)

    def norm_prepare(self, mean: Tensor, var: Tensor, prepared: Prepared) -> None:
        """What follows from given statistics [C]: fills ``prepared`` and moves its running ones."""
        checks.norm_prepare(mean, var, prepared)
        self.unchecked.norm_prepare(mean, var, prepared)

    def norm_finish(self, sums: Tensor, finished: Finished) -> None:
        """Fills ``finished`` from given sums [2, C], those of several ranks."""
        checks.norm_finish(sums, finished)
        self.unchecked.norm_finish(sums, finished)

    def norm_dy(
        self, y: Tensor, dx: Tensor, norm: Norm, a: Tensor, b: Tensor, c: Tensor, dy: Tensor
    ) -> None:
        """dy = a dx + b (y - mean) + c, [T, ...] and [C]; dy may be dx. 3b bytes an element."""
        checks.norm_dy(y, dx, norm, a, b, c, dy)
        self.unchecked.norm_dy(y, dx, norm, a, b, c, dy)

    def stepwise_loss(
        self, loss: StepwiseLoss, logits: Tensor, target: Tensor, teacher_logits: Tensor | None,
        value: Tensor, terms: Tensor, unit: Tensor, gradient: Tensor | None,
    ) -> int | None:  # fmt: skip
        """Fills ``value`` [], ``terms`` [4], ``unit`` [] and ``gradient`` [T, B, C], kept such that
        gradient * unit is that of the value; or returns a label that is no class (on the CPU; on a
        GPU its row is NaN).

        ``logits`` [T, B, C] and ``teacher_logits`` [B, C] in any strides; ``target`` [B] int64 or
        [B, C]. Reads the logits once and writes the gradient once: 2b bytes per logit.
        """
        arguments = (loss, logits, target, teacher_logits, value, terms, unit, gradient)
        checks.stepwise_loss(*arguments)
        return self.unchecked.stepwise_loss(*arguments)

    def tssd_loss(
        self, loss: TssdLoss, logits: Tensor, target: Tensor, aux_logits: Tensor | None,
        value: Tensor, terms: Tensor, unit: Tensor, gradient: Tensor | None,
        aux_gradient: Tensor | None,
    ) -> int | None:  # fmt: skip
        """Fills ``value``, ``terms`` [3], ``unit`` and the gradients, as ``stepwise_loss`` does;
        ``aux_logits`` [T, B, C] in any strides."""
        arguments = (loss, logits, target, aux_logits, value, terms, unit, gradient, aux_gradient)
        checks.tssd_loss(*arguments)
        return self.unchecked.tssd_loss(*arguments)

    def scale_gradient(
        self, gradient: Tensor, grad_output: Tensor, unit: Tensor, scaled: Tensor
    ) -> None:
        """scaled = gradient * (grad_output * unit); 2b bytes per element."""
        checks.scale_gradient(gradient, grad_output, unit, scaled)
        self.unchecked.scale_gradient(gradient, grad_output, unit, scaled)

    def pack_spikes(self, s: Tensor, bits: Tensor) -> None:
        """Fills ``bits`` [ceil(N / 8)] with those of the dense ``s``, in the order of its memory.
        b + 1/8 bytes per element."""
        checks.spikes(s, bits)
        self.unchecked.pack_spikes(s, bits)

    def pack_if_spikes(self, s: Tensor, bits: Tensor) -> bool:
        """The same; False at the first element that is neither +0 nor 1, and then ``bits`` is none.
        On the CPU alone: a GPU would have to be waited for."""
        checks.spikes(s, bits)
        return self.unchecked.pack_if_spikes(s, bits)

    def unpack_spikes(self, bits: Tensor, s: Tensor) -> None:
        """Fills the dense ``s`` with 0 and 1; b + 1/8 bytes per element."""
        checks.spikes(s, bits)
        self.unchecked.unpack_spikes(bits, s)
