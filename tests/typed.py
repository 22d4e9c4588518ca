"""What a type checker knows of the public functions: `make lint` has pyright read it, none runs it.

Each `ignore` is a fault that must be seen: one that is none is an error.
"""

from typing import Any, assert_type

import torch
from torch import Tensor

import snnfast

x = torch.rand(4, 8, 10)
assert_type(snnfast.lif(x), Tensor | Any)
snnfast.lif(x, tau=2.0, surrogate=snnfast.surrogate.ATan(alpha=2.0)).sum()
s, v = snnfast.lif(x, return_state=True)
snnfast.lif(x, tua=2.0)  # pyright: ignore[reportCallIssue]
snnfast.lif(x, surrogate=3)  # pyright: ignore[reportArgumentType]
snnfast.lif()  # pyright: ignore[reportCallIssue]
snnfast.fil(x)  # pyright: ignore[reportAttributeAccessIssue]
loss, terms = snnfast.twkd_loss(x, torch.zeros(8, dtype=torch.long), return_terms=True)
snnfast.twkd_loss(x, torch.zeros(8, dtype=torch.long)).backward()
assert_type(snnfast.pack_spikes(x), Tensor)
assert_type(snnfast.nn.LIF(tau=2.0), snnfast.nn.LIF)
assert_type(snnfast.__version__, str)
