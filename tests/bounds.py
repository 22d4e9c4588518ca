"""How far a gradient may be from the one in float64."""

import torch


def assert_gradient(name, ours, own, exact, scale=None, slack=0.0, roundings=2, read=None):
    """float32: twice the largest error of PyTorch itself in float32 (``own``), or twice a rounding
    of ``scale``, the largest value. Half precision: ``roundings`` more. float64: 1e-10.

    ``slack``: relative to 1 and to the value, for what a device's instructions only approximate;
    ``read``: what it was computed from, which was stored in half precision on the way.
    """
    ours, own = ours.detach().cpu(), own.detach()
    assert ours.shape == exact.shape, f"{name}: {ours.shape}, not {exact.shape}"
    if not exact.numel():
        return
    size = exact.abs()
    scale = size.max().item() if scale is None else scale
    if ours.dtype == torch.float64:
        bound = 1e-10 * (1 + size)
    else:
        error = (own.double() - exact).abs().max().item()
        bound = 2 * max(error, torch.finfo(torch.float32).eps * scale) + slack * (1 + size)
    if ours.dtype in (torch.float16, torch.bfloat16):
        # A rounding is half an eps; below the normal numbers it is half of the smallest one.
        info = torch.finfo(ours.dtype)
        size = size if read is None else size + read.abs()
        bound = bound + roundings / 2 * (info.eps * size + info.smallest_normal * info.eps)
    excess = ((ours.double() - exact).abs() - bound).max().item()
    assert excess <= 0, f"{name}: beyond the bound by {excess:.3g} (values up to {scale:.3g})"
