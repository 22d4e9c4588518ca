"""What a graph has and torch has no layer for."""

from torch import Tensor, nn


class Scale(nn.Module):
    """x * scale of x [T, B, ...] and ``scale``, which broadcasts to a timestep."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
