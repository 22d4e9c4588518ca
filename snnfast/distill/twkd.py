"""TWKD as a criterion module."""

from torch import Tensor, nn

from snnfast.reference_distill import twkd_loss


class TWKD(nn.Module):
    """Temporal-wise logit distillation, :func:`snnfast.reference_distill.twkd_loss` as a criterion.

    Weights and temperature are the paper's for CIFAR (arXiv 2501.15925).

        >>> criterion = TWKD(alpha=0.2, beta=0.5, temperature=3.0)
        >>> loss = criterion(student(images), target, teacher_logits)
    """

    def __init__(
        self,
        alpha: float = 0.2,
        beta: float = 0.5,
        temperature: float = 3.0,
        self_target: str = "mean",
        scale_by_temperature: bool = True,
    ):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.self_target = self_target
        self.scale_by_temperature = scale_by_temperature

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        teacher_logits: Tensor | None = None,
        return_terms: bool = False,
    ):
        """The loss of logits [T, B, C], target [B] and teacher_logits [B, C]; with its terms."""
        return twkd_loss(
            logits,
            target,
            teacher_logits,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            self_target=self.self_target,
            scale_by_temperature=self.scale_by_temperature,
            return_terms=return_terms,
        )

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}, "
            f"self_target={self.self_target!r}, scale_by_temperature={self.scale_by_temperature}"
        )
