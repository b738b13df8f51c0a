"""How the factors of the label's and the rollouts' loss change over the steps of a run; steps count from 0."""

import math

from visurf_ray.config.schema import MethodConfig, MuConfig


def loss_scales(config: MethodConfig, step: int) -> tuple[float, float]:
    """Return the factors of the label's and of the rollouts' loss."""
    mixed = mu(config.mu, step)
    if mixed is not None:
        return mixed, 1.0 - mixed
    decay = 1.0 if config.label_decay is None else max(0.0, 1.0 - step / config.label_decay)
    return config.label_coef * decay, 1.0


def mu(config: MuConfig, step: int) -> float | None:
    """Return CHORD's μ, which rises linearly from 0 to its peak and falls by a cosine to its valley; None if not set.

    The loss is (1 - μ) · rollouts' + μ · label's (arXiv 2508.11408, eq. 3; the shape as in its authors' code,
    Trinity-RFT).
    """
    if config.peak is None:
        return None
    if step < config.warmup:
        return config.peak * step / config.warmup
    fallen = min(1.0, (step - config.warmup) / config.decay) if config.decay else 1.0
    return config.valley + (config.peak - config.valley) * (1.0 + math.cos(math.pi * fallen)) / 2.0
