"""Layers under test on a GPU, judged against the CPU in float64; skipped loudly without one."""

import pytest
import torch
from torch import nn

import parity

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no GPU here: layers on device='cuda' are NOT checked in this run",
)

LAYERS = {
    "linear": (nn.Linear(5, 3), (8, 5)),
    "conv2d": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 9, 9)),
    "batchnorm2d": (nn.BatchNorm2d(3), (4, 3, 5, 5)),
    "layernorm": (nn.LayerNorm(6), (4, 6)),
    "gelu": (nn.GELU(), (5, 7)),
    "softmax": (nn.Softmax(-1), (5, 7)),
    "maxpool2d": (nn.MaxPool2d(2), (2, 3, 8, 8)),
}


def wrapped(module):
    """Return a module of the same parameters that is not the same code."""

    class Own(type(module)):
        def forward(self, x):
            return super().forward(x)

    own = Own.__new__(Own)
    own.__dict__ = module.__dict__.copy()
    return own


@needs_gpu
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_the_gpu_matches_the_cpu(name):
    """TF32 stays off, as torch's default has it for matrix products; convolutions are told so."""
    module, shape = LAYERS[name]
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        report = parity.check(wrapped(module), module, shape, device="cuda")
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert report.passed, str(report)


@needs_gpu
def test_tf32_is_called_rough_and_not_wrong():
    """TensorFloat-32 keeps ten bits of the mantissa: float64 decides, float32 is rougher."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        report = parity.check(
            wrapped(nn.Linear(64, 64)), nn.Linear(64, 64), (256, 64), device="cuda"
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    verdicts = {(f.dtype, str(f.verdict)) for f in report.of("forward")}
    assert ("float64", "MATCH") in verdicts
    assert ("float32", "MATCH") not in verdicts


def test_a_device_that_is_not_there_is_refused_in_one_line():
    """A mistyped or missing device is the user's to mend, and the sentence says how."""
    with pytest.raises(parity.UsageError, match="device 'cudda'"):
        parity.check(wrapped(nn.ReLU()), nn.ReLU(), (3, 4), device="cudda")
