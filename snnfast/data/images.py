"""Images in memory, and their augmentation."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ImageData:
    """A data set that fits in memory: images float32 [N, C, H, W] in 0..1, targets int64 [N]."""

    train_images: Tensor
    train_targets: Tensor
    test_images: Tensor
    test_targets: Tensor
    num_classes: int

    @property
    def in_channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train_images.shape[-1]

    def to(self, device) -> "ImageData":
        """The same data on another device."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_targets=self.train_targets.to(device),
            test_images=self.test_images.to(device),
            test_targets=self.test_targets.to(device),
        )


def random_shift(images: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Shift every image by -pixels .. pixels in both directions, independently; 0 comes in.

    ``images`` [B, C, H, W]; the generator is a CPU one on every device, so that the shifts are the
    same everywhere.
    """
    if pixels == 0:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    corner = torch.randint(0, 2 * pixels + 1, (2, batch), generator=generator).to(images.device)
    rows = corner[0, :, None] + torch.arange(height, device=images.device)  # [B, H]
    columns = corner[1, :, None] + torch.arange(width, device=images.device)  # [B, W]
    sample = torch.arange(batch, device=images.device)
    channel = torch.arange(channels, device=images.device)
    return padded[
        sample[:, None, None, None],
        channel[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
