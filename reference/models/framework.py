"""torch's counterparts of impl.models.framework."""

from torch.nn import BatchNorm1d, Dropout, Linear, LogSoftmax, ReLU, Sequential


def blobs_net():
    """Return B2's net, x (N, 2) to log-probabilities (N, 2): one straight border."""
    return Sequential(Linear(2, 2), LogSoftmax(dim=1))


def circles_net(width=100):
    """Return B3's net, x (N, 2) to log-probabilities (N, 2), with one hidden layer."""
    return Sequential(Linear(2, width), ReLU(), Linear(width, 2), LogSoftmax(dim=1))


def clothing_net(width=128, activation=ReLU, normalise=False, p=0.0, head=None):
    """Return B4's net, x (N, 784) to scores (N, 10), or what `head()` makes of the scores.

    `normalise` puts a BatchNorm in front of each activation, `p` > 0 a dropout behind it.
    """
    layers = []
    for size in (784, width):
        layers.append(Linear(size, width))
        if normalise:
            layers.append(BatchNorm1d(width))
        layers.append(activation())
        if p:
            layers.append(Dropout(p))
    layers.append(Linear(width, 10))
    if head is not None:
        layers.append(head())
    return Sequential(*layers)
