"""The distillation objectives written out row by row and step by step, as the papers have them.

Nothing is shared with the package: probabilities and logarithms of float64 logits, sums in Python.
"""

import torch


def problem(steps=5, batch=7, classes=6, seed=0, dtype=torch.float64, scale=3.0):
    """Logits [T, B, C] and auxiliary ones that require grad, labels [B], teacher logits [B, C]."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)

    z, w = normal(steps, batch, classes), normal(steps, batch, classes)
    y = torch.randint(0, classes, (batch,), generator=g)
    # Some rows are right at some steps, one at all of them, one at none.
    for b in range(0, batch, 2):
        z[b % steps, b, y[b]] = 4 * scale
    if batch > 2:
        z[:, 1, y[1]], z[:, 2, y[2]] = 4 * scale, -4 * scale
    return z.requires_grad_(), y, normal(batch, classes), w.requires_grad_()


def probabilities(batch, classes, seed=0, dtype=torch.float64):
    """Class probabilities [B, C] as Mixup makes them."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(batch, classes, generator=g, dtype=torch.float64).softmax(-1).to(dtype)


def softmax(z, tau=1.0):
    e = ((z - z.max()) / tau).exp()
    return e / e.sum()


def log_softmax(z, tau=1.0):
    x = (z - z.max()) / tau
    return x - x.exp().sum().log()


def kl(p_logits, q_logits, tau):
    p = softmax(p_logits.detach(), tau)
    return (p * (log_softmax(p_logits.detach(), tau) - log_softmax(q_logits, tau))).sum()


def distribution(target, b, classes, smoothing):
    """Target distribution of row b, its label, and whether the row counts."""
    if target.is_floating_point():
        y, label = target[b].double(), int(target[b].argmax())
    else:
        label = int(target[b])
        y = torch.zeros(classes, dtype=torch.float64)
        y[label] = 1
    return (1 - smoothing) * y + smoothing / classes, label


def _rows(z, target, ignore_index):
    soft = target.is_floating_point()
    return [b for b in range(z.shape[1]) if soft or int(target[b]) != ignore_index]


def stepwise(z, target, teacher=None, *, alpha=0.0, beta=0.0, lam=0.0, tau=3.0, tau_ce=1.0,
             tau_h=None, self_target="mean", scaled=True, skip_all_wrong=False, convex=False,
             smoothing=0.0, ignore_index=-100):  # fmt: skip
    """TWKD (lam = 0) and TSER (beta = 0): the loss of float64 logits, differentiable."""
    steps, _, classes = z.shape
    rows = _rows(z, target, ignore_index)
    scale = tau * tau if scaled else 1.0
    total = 0.0
    for b in rows:
        y, label = distribution(target, b, classes, smoothing)
        if self_target == "mean":
            own, wanted = sum(z[t, b].detach() for t in range(steps)) / steps, True
        else:
            right = [z[t, b].detach() for t in range(steps) if int(z[t, b].argmax()) == label]
            wanted = bool(right) or not skip_all_wrong
            own = sum(right) / len(right) if right else torch.zeros(classes, dtype=z.dtype)
        for t in range(steps):
            ce = -(y * log_softmax(z[t, b], tau_ce)).sum()
            total = total + (1 - alpha if convex else 1) * ce
            if alpha:
                total = total + alpha * scale * kl(teacher[b].double(), z[t, b], tau)
            if beta and wanted:
                total = total + beta * scale * kl(own, z[t, b], tau)
            if lam:
                q = softmax(z[t, b], tau_h or tau)
                total = total + lam * (q * log_softmax(z[t, b], tau_h or tau)).sum()
    return total / (steps * len(rows))


def tssd(z, target, w=None, *, student_steps, alpha=1.0, beta=1.0, tau=2.0, ce_steps="all",
         per_step=True, scaled=False, smoothing=0.0, ignore_index=-100):  # fmt: skip
    """TSSD: the loss of float64 logits, differentiable."""
    steps, _, classes = z.shape
    rows = _rows(z, target, ignore_index)
    scale = tau * tau if scaled else 1.0
    shares = {"all": (1, 0), "student": (0, 1), "both": (0.5, 0.5)}[ce_steps]
    total = 0.0
    for b in rows:
        y, _ = distribution(target, b, classes, smoothing)
        mean = sum(z[t, b] for t in range(steps)) / steps
        student = sum(z[t, b] for t in range(student_steps)) / student_steps
        for share, logits in zip(shares, (mean, student), strict=True):
            total = total - share * (y * log_softmax(logits)).sum()
        total = total + alpha * scale * kl(mean, student, tau)
        if beta and per_step:
            total = (
                total + beta * scale * sum(kl(z[t, b], w[t, b], tau) for t in range(steps)) / steps
            )
        elif beta:
            aux = sum(w[t, b] for t in range(steps)) / steps
            total = total + beta * scale * kl(mean, aux, tau)
    return total / len(rows)
