"""The frame of the spiking networks: stem, stages, classifier, and the auxiliary head."""

from torch import Tensor, nn

from snnfast.models.layers import pooled, timesteps_of
from snnfast.nn.over_time import over_time


class SpikingNetwork(nn.Module):
    """A stem, stages by name, and a classifier; a subclass builds them, then calls ``add_head``.

    Everything between the stem and the classifier is [T, B, C, H, W].
    """

    stages: tuple[str, ...]

    def __init__(self, timesteps: int):
        super().__init__()
        self.timesteps = timesteps

    def add_head(self, stage: str | None, widths: dict[str, int], num_classes: int) -> None:
        """Name the stages by their widths, and build the weak classifier behind ``stage``. To be
        called last: the other weights are then the same with and without it."""
        self.stages = tuple(widths)
        if stage is not None and stage not in widths:
            raise ValueError(
                f"create_model: aux_head must be one of {', '.join(widths)} or None, got {stage!r}"
            )
        self.aux_stage = stage
        if stage is not None:
            self.aux_head = nn.Linear(widths[stage], num_classes)

    def stem(self, x: Tensor, timesteps: int | None) -> Tensor:
        """[T, B, C, H, W] of a sequence, or of an image that is shown for ``timesteps`` steps:
        ``conv1`` and the batch norm of ``bn1`` then run once."""
        if timesteps is not None:
            return self.bn1(self.conv1(x), timesteps=timesteps)
        return self.bn1(over_time(self.conv1, x))

    def stage(self, name: str, s: Tensor) -> Tensor:
        """Run one stage."""
        return getattr(self, name)(s)

    def classify(self, s: Tensor) -> Tensor:
        """Logits [T, B, classes] of the last stage's output."""
        return self.fc(pooled(s))

    def forward(self, x: Tensor, timesteps: int | None = None):
        """Logits [T, B, classes] of a whole sequence x [T, B, C, H, W], time first, or of an image
        x [B, C, H, W] shown for ``timesteps`` steps: a step x[t] would be taken for an image. With
        an auxiliary head and in training mode (logits, aux_logits)."""
        static, steps = timesteps_of(x, timesteps, self.timesteps)
        s = self.stem(x, steps if static else None)
        aux_logits = None
        for name in self.stages:
            s = self.stage(name, s)
            if name == self.aux_stage and self.training:
                aux_logits = self.aux_head(pooled(s))
        logits = self.classify(s)
        return logits if aux_logits is None else (logits, aux_logits)
