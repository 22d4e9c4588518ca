"""The three objectives as criterion modules: they hold the options and call the functions."""

import inspect

from torch import Tensor, nn

from snnfast.ops.distill import loss_options, tser_loss, tssd_loss, twkd_loss


class _Criterion(nn.Module):
    """Takes the keyword arguments of ``function``, with its defaults, and holds them."""

    function = None

    def __init_subclass__(cls):
        parameters = inspect.signature(cls.function).parameters.values()
        options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        cls.__signature__ = inspect.Signature(options)

    def __init__(self, **options):
        super().__init__()
        try:
            bound = inspect.signature(type(self)).bind(**options)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        loss_options(type(self).function, **bound.arguments)
        self._names = tuple(bound.arguments)
        for name, value in bound.arguments.items():
            setattr(self, name, value)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        other_logits: Tensor | None = None,
        return_terms: bool | None = None,
    ):
        """The loss of logits [T, B, C], time first, and target [B] (or [B, C]), beside the
        teacher's logits [B, C] or the auxiliary ones [T, B, C]; or (loss, terms)."""
        options = {name: getattr(self, name) for name in self._names}
        if return_terms is not None:
            options["return_terms"] = return_terms
        return type(self).function(logits, target, other_logits, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names)


class TWKD(_Criterion):
    """Temporal-wise logit distillation (arXiv 2501.15925): :func:`snnfast.twkd_loss` as a module.

    Weights and temperature are the paper's for CIFAR.

        >>> criterion = TWKD(alpha=0.2, beta=0.5, temperature=3.0)
        >>> loss = criterion(student(images), target, teacher_logits)
    """

    function = staticmethod(twkd_loss)


class TSER(_Criterion):
    """Temporal separation with entropy regularisation (arXiv 2503.03144): :func:`snnfast.tser_loss`
    as a module, called with the teacher's logits as :class:`TWKD` is."""

    function = staticmethod(tser_loss)


class TSSD(_Criterion):
    """Temporal-spatial self-distillation (arXiv 2406.07862): :func:`snnfast.tssd_loss` as a module.

    >>> criterion = TSSD(student_steps=2)
    >>> logits, aux_logits = model(images)
    >>> loss = criterion(logits, target, aux_logits)
    """

    function = staticmethod(tssd_loss)
