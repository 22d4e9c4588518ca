"""Firing rates, synaptic operations and energy, layer by layer.

A convolution or linear layer whose input is spikes adds weights, one synaptic operation for each
spike and weight it meets; any other multiplies and accumulates. In picojoules, for 45 nm and 32 bit
(Horowitz, ISSCC 2014), as the field counts them (Rathi and Roy 2020, arXiv 2008.03658):

    SOPs     = rate * runs * MACs         rate: the fraction of the layer's inputs that are not 0
    energy   = 0.9 * SOPs                 where the input is spikes, 0 or 1
             = 4.6 * runs * MACs          the first layer, and wherever the input is not spikes
    the ANN  = 4.6 * MACs, summed         the same layers, once

MACs are those of one sample at one timestep, padding counted. ``runs`` is how often the layer runs
for a sample: T, or once where it comes before the first neurons of a static image; a linear layer
runs for each row of its input. Biases, batch norm, pooling and the neurons' own arithmetic are not
counted.

Access to memory is counted apart, as the floor of a machine that computes a run of a layer after
the other and holds nothing in between: the inputs are written by whoever made them and read once,
the weights read once, and of a spiking network a 32-bit potential for each output read and written.
A bit costs 100/64 pJ, Horowitz's 1 MB cache (13 to 26 times as much from DRAM):

    memory   = 100/64 * runs * (2 * input bits * inputs + 32 * weights + 64 * outputs)
    the ANN  = 100/64 * (2 * 32 * inputs + 32 * weights), summed

Input bits are 1 where all inputs are 0 or 1, else 32. Real machines keep some of that in place, and
read weights anew for other reasons.

A spike count over T steps says as much as an activation of b = ceil(log2(T + 1)) bits, so the ANN
that T steps are to be held to is one of b-bit activations (Yan et al. 2024, arXiv 2409.08290). Its
product of b bits and a weight is counted as b additions where these are cheaper than a
multiplication; its first layer is the ANN's:

    the ANN of b bits = min(4.6, 0.9 b) * MACs;  100/64 * (2 b * inputs + 32 * weights), summed
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from snnfast.ops.spikes import pack_spikes
from snnfast.ops.warm_up import left_alone

MAC_PJ, AC_PJ = 4.6, 0.9
BIT_PJ = 100 / 64
WORD = 32
"""Bits of a weight, a potential, or an activation of the ANN."""
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

FIRST = "the first layer: it reads the input"
SUMS = "its input is whole numbers beyond 1: sums of spikes"
MEANS = "its input is values from 0 to 1: averaged spikes"
REAL = "its input is real-valued"
"""Why a layer is counted as multiplying."""


@dataclass
class LayerActivity:
    """One convolution or linear layer; all per sample."""

    name: str
    macs: int
    """Of one run: one timestep."""
    runs: float
    rate: float
    """The fraction of its inputs that are not 0."""
    binary: bool
    """Whether its inputs were nothing but 0 and 1."""
    why_mac: str | None
    """Why it is counted as multiplying; None where it is counted as adding."""
    inputs: int
    outputs: int
    """Elements of one run."""
    weights: int

    @property
    def sops(self) -> float:
        return self.rate * self.runs * self.macs

    @property
    def energy_pj(self) -> float:
        return AC_PJ * self.sops if self.why_mac is None else MAC_PJ * self.runs * self.macs

    def moved_pj(self, input_bits: int, output_bits: int) -> float:
        """Access to memory in one run."""
        bits = 2 * input_bits * self.inputs + WORD * self.weights + output_bits * self.outputs
        return BIT_PJ * bits

    def memory_pj(self, spiking: bool) -> float:
        """Access to memory in all runs; of a spiking network with the potentials."""
        input_bits = 1 if self.binary else WORD
        return self.runs * self.moved_pj(input_bits, 2 * WORD if spiking else 0)


@dataclass
class Activity:
    """All layers in the order of their first call, over ``samples`` samples at ``timesteps``."""

    layers: list[LayerActivity]
    timesteps: int
    samples: int
    spiking: bool
    """Whether the output has a time axis."""

    @property
    def macs(self) -> int:
        """Of one timestep."""
        return sum(layer.macs for layer in self.layers)

    @property
    def sops(self) -> float:
        """Of the layers that add."""
        return sum(layer.sops for layer in self.layers if layer.why_mac is None)

    @property
    def energy_pj(self) -> float:
        return sum(layer.energy_pj for layer in self.layers)

    @property
    def memory_pj(self) -> float:
        """Access to memory, which ``energy_pj`` does not count."""
        return sum(layer.memory_pj(self.spiking) for layer in self.layers)

    @property
    def ann_energy_pj(self) -> float:
        """The same layers run once with real-valued input."""
        return MAC_PJ * self.macs

    @property
    def ann_memory_pj(self) -> float:
        return sum(layer.moved_pj(WORD, 0) for layer in self.layers)

    @property
    def bits(self) -> int:
        """Of an activation that says as much as T timesteps."""
        return self.timesteps.bit_length()

    @property
    def matched_energy_pj(self) -> float:
        """The ANN with activations of ``bits`` bits."""
        first, *others = self.layers
        product = min(MAC_PJ, AC_PJ * self.bits)
        return MAC_PJ * first.macs + product * sum(layer.macs for layer in others)

    @property
    def matched_memory_pj(self) -> float:
        first, *others = self.layers
        return first.moved_pj(WORD, 0) + sum(layer.moved_pj(self.bits, 0) for layer in others)

    def asdict(self) -> dict:
        """Everything as plain numbers and strings, for JSON."""
        rows = [
            asdict(layer)
            | {
                "sops": layer.sops,
                "energy_pj": layer.energy_pj,
                "memory_pj": layer.memory_pj(self.spiking),
            }
            for layer in self.layers
        ]
        names = (
            "timesteps", "samples", "spiking", "macs", "sops", "energy_pj", "memory_pj",
            "ann_energy_pj", "ann_memory_pj", "bits", "matched_energy_pj", "matched_memory_pj",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"layers": rows}


@dataclass
class _Count:
    """What the hooks of one layer add up."""

    macs: int = 0
    rows: int = 0
    inputs: int = 0
    outputs: int = 0
    weights: int = 0
    active: int = 0
    binary: bool = True
    whole: bool = True
    share: bool = True
    """Whether all inputs were 0 or 1; whole numbers; from 0 to 1."""


@dataclass
class _Hooks:
    """Counts of every layer with weights, while the block lasts."""

    model: nn.Module
    counts: dict[str, _Count] = field(default_factory=dict)

    def __enter__(self):
        self._handles = []
        for name, module in self.model.named_modules():
            if isinstance(module, WEIGHTED):
                # Registered by its first call, so that the order is that of the calls.
                self._handles.append(
                    module.register_forward_hook(
                        lambda module, args, y, name=name: _add(
                            self.counts.setdefault(name, _Count()), module, args[0], y
                        )
                    )
                )
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()


def _add(count: _Count, module: nn.Module, x: Tensor, y: Tensor) -> None:
    per_output = module.weight[0].numel()
    if isinstance(module, nn.Linear):
        rows = y.numel() // module.out_features
    else:
        rows = y.shape[0] if y.dim() == module.weight.dim() else 1
    count.macs += y.numel() * per_output
    count.rows += rows
    count.inputs += x.numel()
    count.outputs += y.numel()
    count.weights = module.weight.numel()
    binary = bool(((x == 0) | (x == 1)).all())
    if binary:
        count.active += _popcount(pack_spikes(x))
    else:
        count.active += int((x != 0).sum())
        count.whole &= bool((x == x.round()).all())
        count.share &= bool(((x >= 0) & (x <= 1)).all())
    count.binary &= binary


def _popcount(bits: Tensor) -> int:
    """How many bits of uint8 ``bits`` are set."""
    ones = torch.tensor([value.bit_count() for value in range(256)], device=bits.device)
    return int((torch.bincount(bits, minlength=256) * ones).sum())


def _why_mac(first: bool, count: _Count) -> str | None:
    if first:
        return FIRST
    if count.binary:
        return None
    return SUMS if count.whole else MEANS if count.share else REAL


@torch.no_grad()
def measure(
    model: nn.Module, batches: Iterable[Tensor | tuple], timesteps: int | None = None
) -> Activity:
    """Firing rates, operations and energy of ``model`` on ``batches``, in evaluation mode.

    Args:
        model: spiking, called as those of ``snnfast.models`` are and returning [T, B, ...]; or an
            ANN, returning [B, ...], which counts as one timestep.
        batches: images [B, C, H, W] or sequences [T, B, C, H, W], the same T throughout, or tuples
            that begin with these, such as (images, targets).
        timesteps: T for images; None: the model's own, and what an ANN needs.

    The model is left as it was, states of its neurons and random numbers included.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: there is no batch, T differs between batches, or the model has no convolution or
            linear layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"measure: model must be a torch module, got {type(model).__name__}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    samples, seen, spiking = 0, set(), False
    with left_alone(model, device), _Hooks(model) as hooks:
        model.eval()
        for batch in batches:
            x = (batch if isinstance(batch, Tensor) else batch[0]).to(device)
            given = () if timesteps is None or x.dim() == 5 else (timesteps,)
            logits = model(x, *given)
            samples += x.shape[1] if x.dim() == 5 else x.shape[0]
            spiking = logits.dim() == 3
            seen.add(logits.shape[0] if spiking else 1)
    if len(seen) != 1:
        got = f"{sorted(seen)} timesteps" if seen else "none"
        raise ValueError(f"measure: batches must be one or more of the same T, got {got}")
    if not hooks.counts:
        raise ValueError("measure: model must have a convolution or linear layer, got none")
    layers = [
        LayerActivity(
            name=name,
            macs=count.macs // count.rows,
            runs=count.rows / samples,
            rate=count.active / count.inputs,
            binary=count.binary,
            why_mac=_why_mac(i == 0, count),
            inputs=count.inputs // count.rows,
            outputs=count.outputs // count.rows,
            weights=count.weights,
        )
        for i, (name, count) in enumerate(hooks.counts.items())
    ]
    return Activity(layers, seen.pop(), samples, spiking)
