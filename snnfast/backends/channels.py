"""The numbers per channel of a normalisation, in torch's own small ops."""

import torch
from torch import Tensor

from snnfast.backends.spec import Finished, Prepared


def norm_prepare(mean: Tensor, var: Tensor, prepared: Prepared) -> None:
    inv_std, scale, weight, running_mean, running_var, momentum, unbias, eps = prepared
    if running_mean is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * unbias, momentum)
    inv_std.copy_(1 / (var + eps).double().sqrt().to(var.dtype))
    scale.copy_(inv_std if weight is None else weight * inv_std)


def norm_finish(sums: Tensor, finished: Finished) -> None:
    scale, inv_std, count, dweight, dbias, b, c = finished
    torch.mul(sums[1], inv_std, out=dweight)
    dbias.copy_(sums[0])
    if count:
        torch.div(scale * inv_std * inv_std * sums[1], -count, out=b)
        torch.div(scale * sums[0], -count, out=c)
    else:
        b.zero_(), c.zero_()
