"""Networks as NIR graphs (Pedersen et al. 2024, arXiv 2311.14641), and NIR graphs as networks.

NIR gives neurons as differential equations in seconds, and has no time axis. What that leaves open
is settled as SpikingJelly and snnTorch do: Euler steps of ``dt``; the inputs of a node are added.

    LIF         tau = dt tau,  v_leak = v_reset or v_rest,  r = 1 with decay_input, else tau / dt
                with beta: tau = dt / (1 - beta),  v_leak = 0,  r = tau / dt
    IF          r = 1 / dt
    CubaLIF     as it is, in steps of ``dt``
    batch norm  three nodes of one rounding each, in the order of ``snnfast.norm_lif``: y - mean, a
                Scale by weight / sqrt(var + eps), + bias. The sums are an Affine on features [F],
                else a convolution of one pixel

The metadata of a node has what NIR has no word for.
"""

from snnfast.interop.nir.read import from_nir
from snnfast.interop.nir.write import to_nir

__all__ = ["from_nir", "to_nir"]
