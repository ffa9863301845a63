"""torch's counterparts of impl.models.digits_net."""

from torch.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential


def digits_net(channels=(16, 32), p=0.25):
    """Return A4's net, x (N, 1, 8, 8) to scores (N, 10)."""
    first, second = channels
    return Sequential(
        Conv2d(1, first, 3, padding=1),
        BatchNorm2d(first),
        ReLU(),
        Conv2d(first, second, 3, padding=1),
        BatchNorm2d(second),
        ReLU(),
        MaxPool2d(2),
        Dropout(p),
        Flatten(),
        Linear(second * 4 * 4, 10),
    )
