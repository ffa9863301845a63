"""torch's counterparts of impl.models.convolution."""

from torch.nn import AvgPool2d, BatchNorm2d, Conv2d, Flatten, Linear, ReLU, Sequential


def line_net():
    """Return A1's net, x (N, 1, 5, 5) to scores (N, 2): one window as large as the image."""
    return Sequential(Conv2d(1, 4, 5), ReLU(), Flatten(), Linear(4, 2))


def pooled_net(size, classes, eps=1e-5):
    """Return the net of A2 and A3, x (N, 1, size, size) to scores (N, classes)."""
    return Sequential(
        Conv2d(1, 4, 3),
        BatchNorm2d(4, eps=eps),
        ReLU(),
        AvgPool2d(2, stride=2),
        Flatten(),
        Linear(4 * ((size - 2) // 2) ** 2, classes),
    )
