"""torch's counterparts of impl.models.hinge."""

from torch.nn import Linear


def hinge_net():
    """Return E's net, x (N, 64) with pixels 0 to 16, to scores (N, 10)."""
    return Linear(64, 10)
