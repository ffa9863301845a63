"""Every form of layer: a right one passes as it is, a wrong one is refused for what is wrong."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.adapting import adapt
from parity.findings import Verdict

RNG = np.random.default_rng(0)


def windows(x, k):
    """(N, C, H, W) → (N, C, H', W', k, k)."""
    return np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))


def conv(x, w, b):
    return np.einsum("nchwij,ocij->nohw", windows(x, w.shape[2]), w) + b[:, None, None]


def conv_grads(x, w, g):
    k = w.shape[2]
    padded = np.pad(g, ((0, 0), (0, 0), (k - 1, k - 1), (k - 1, k - 1)))
    dx = np.einsum("nohwij,ocij->nchw", windows(padded, k), w[:, :, ::-1, ::-1])
    dw = np.einsum("nchwij,nohw->ocij", windows(x, k), g)
    return dx, dw, g.sum((0, 2, 3))


def norm(x, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5)


def norm_grad(g, xhat, var):
    return (g - g.mean(0) - xhat * (g * xhat).mean(0)) / np.sqrt(var + 1e-5)


def log_softmax(x):
    z = x - x.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


# ---- attributes: W, b, dW, db ------------------------------------------------------------------


class Affine:
    wrong = 1.0

    def __init__(self, width=4, out=3):
        self.W = RNG.standard_normal((width, out))
        self.b = np.zeros((1, out))

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout):
        self.dW = self.x.T @ dout * self.wrong
        self.db = dout.sum(0, keepdims=True)
        return dout @ self.W.T


class Called:
    """A layer whose __call__ is its forward."""

    wrong = 1.0

    def __init__(self):
        self.W, self.b = RNG.standard_normal((4, 3)), np.zeros(3)

    def __call__(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, g):
        self.dW, self.db = self.x.T @ g * self.wrong, g.sum(0)
        return g @ self.W.T


class CalledDicts:
    """The plain contract, but for __call__."""

    wrong = 1.0

    def __init__(self):
        self.params, self.grads = {"weight": np.zeros((3, 4)), "bias": np.zeros(3)}, {}

    def __call__(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, g):
        for name, grad in (("weight", g.T @ self.x * self.wrong), ("bias", g.sum(0))):
            self.grads[name] = self.grads.get(name, 0) + grad
        return g @ self.params["weight"]


class CalledLoss:
    wrong = 1.0

    def __call__(self, prediction, target):
        self.off = prediction - target
        return np.mean(self.off**2)

    def backward(self):
        return 2 * self.off / self.off.size * self.wrong


class KernelsLast:
    """HWIO kernels, images as in torch."""

    wrong = 0

    def __init__(self):
        self.kernel = RNG.standard_normal((2, 2, 3, 4))
        self.bias = np.zeros(4)

    def forward(self, x):
        self.x = x
        return conv(x, self.kernel.transpose(3, 2, 0, 1), self.bias)

    def backward(self, dout):
        dx, dw, db = conv_grads(self.x, self.kernel.transpose(3, 2, 0, 1), dout)
        self.kernel_grad, self.bias_grad = dw.transpose(2, 3, 1, 0), db + self.wrong
        return dx


class BatchNorm:
    unbiased = True

    def __init__(self, n=4):
        self.gamma, self.beta = np.ones(n), np.zeros(n)
        self.moving_mean, self.moving_variance = np.zeros(n), np.ones(n)
        self.training = True

    def forward(self, x):
        n = len(x)
        mean, self.var = self.moving_mean, self.moving_variance
        if self.training:
            mean, self.var = x.mean(0), x.var(0)
            tracked = self.var * (n / (n - 1) if self.unbiased else 1)
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean
            self.moving_variance = 0.9 * self.moving_variance + 0.1 * tracked
        self.xhat = norm(x, mean, self.var)
        return self.gamma * self.xhat + self.beta

    def backward(self, dout):
        self.dgamma, self.dbeta = (dout * self.xhat).sum(0), dout.sum(0)
        g = dout * self.gamma
        return norm_grad(g, self.xhat, self.var) if self.training else g / np.sqrt(self.var + 1e-5)


# ---- Torch7 ------------------------------------------------------------------------------------


class Module7:
    def __init__(self):
        self.training = True

    def forward(self, input):
        return self.updateOutput(input)

    def backward(self, input, gradOutput):
        self.updateGradInput(input, gradOutput)
        self.accGradParameters(input, gradOutput)
        return self.gradInput

    def accGradParameters(self, input, gradOutput):
        pass

    def zeroGradParameters(self):
        pass

    def getParameters(self):
        return []

    def getGradParameters(self):
        return []

    def train(self):
        self.training = True

    def evaluate(self):
        self.training = False


class Linear7(Module7):
    wrong = 1.0

    def __init__(self, n_in=4, n_out=3):
        super().__init__()
        self.W = RNG.standard_normal((n_out, n_in))
        self.b = np.zeros(n_out)
        self.gradW = np.zeros_like(self.W)
        self.gradb = np.zeros_like(self.b)

    def updateOutput(self, input):
        self.output = input @ self.W.T + self.b
        return self.output

    def updateGradInput(self, input, gradOutput):
        self.gradInput = gradOutput @ self.W
        return self.gradInput

    def accGradParameters(self, input, gradOutput):
        self.gradW += gradOutput.T @ input * self.wrong
        self.gradb += gradOutput.sum(0)

    def zeroGradParameters(self):
        self.gradW.fill(0)
        self.gradb.fill(0)

    def getParameters(self):
        return [self.W, self.b]

    def getGradParameters(self):
        return [self.gradW, self.gradb]


class BatchNorm7(Module7):
    wrong = 0.0

    def __init__(self):
        super().__init__()
        self.moving_mean = None
        self.moving_variance = None

    def updateOutput(self, input):
        n = len(input)
        mean, self.var = self.moving_mean, self.moving_variance
        if self.training:
            mean, self.var = input.mean(0), input.var(0)
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean
            self.moving_variance = 0.9 * self.moving_variance + 0.1 * self.var * n / (n - 1)
        self.output = norm(input, mean, self.var + self.wrong)
        return self.output

    def updateGradInput(self, input, gradOutput):
        if self.training:
            self.gradInput = norm_grad(gradOutput, self.output, self.var)
        else:
            self.gradInput = gradOutput / np.sqrt(self.var + 1e-5)
        return self.gradInput


class ReLU7(Module7):
    def updateOutput(self, input):
        return np.maximum(input, 0)

    def updateGradInput(self, input, gradOutput):
        self.gradInput = gradOutput * (input > 0)
        return self.gradInput


class Sequential7(Module7):
    def __init__(self, *modules):
        super().__init__()
        self.modules = list(modules)

    def updateOutput(self, input):
        self.inputs = [input]
        for module in self.modules:
            self.inputs.append(module.forward(self.inputs[-1]))
        return self.inputs[-1]

    def backward(self, input, gradOutput):
        for module, own in zip(self.modules[::-1], self.inputs[-2::-1], strict=True):
            gradOutput = module.backward(own, gradOutput)
        return gradOutput

    def zeroGradParameters(self):
        for module in self.modules:
            module.zeroGradParameters()

    def getParameters(self):
        return [module.getParameters() for module in self.modules]

    def getGradParameters(self):
        return [module.getGradParameters() for module in self.modules]

    def train(self):
        for module in self.modules:
            module.train()

    def evaluate(self):
        for module in self.modules:
            module.evaluate()


class Criterion7:
    """Negative log-likelihood of one-hot targets."""

    wrong = 1

    def updateOutput(self, input, target):
        return -(input * target).sum() / len(input)

    def updateGradInput(self, input, target):
        return -target / len(input) * self.wrong


# ---- function pairs ----------------------------------------------------------------------------


def affine_forward(x, w, b):
    return x @ w + b, (x, w)


def affine_backward(dout, cache):
    x, w = cache
    return dout @ w.T, x.T @ dout, dout.sum(0)


def affine_backward_wrong(dout, cache):
    dx, dw, db = affine_backward(dout, cache)
    return dx, dw, db / len(dout)


def conv_forward(x, w, b, conv_param):
    pad = conv_param["pad"]
    assert conv_param["stride"] == 1
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    return conv(x, w, b), (x, w, pad)


def conv_backward(dout, cache):
    x, w, pad = cache
    dx, dw, db = conv_grads(x, w, dout)
    return dx[:, :, pad : dx.shape[2] - pad, pad : dx.shape[3] - pad], dw, db


def conv_backward_wrong(dout, cache):
    dx, dw, db = conv_backward(dout, cache)
    return dx, dw[:, :, ::-1], db


def batchnorm_forward(x, gamma, beta, bn_param):
    m, n = bn_param["momentum"], len(x)
    mean, var = bn_param["running_mean"], bn_param["running_var"]
    train = bn_param["mode"] == "train"
    if train:
        bn_param["running_mean"] = m * mean + (1 - m) * x.mean(0)
        bn_param["running_var"] = m * var + (1 - m) * x.var(0) * n / (n - 1)
        mean, var = x.mean(0), x.var(0)
    xhat = norm(x, mean, var)
    return gamma * xhat + beta, (xhat, gamma, var, train)


def batchnorm_backward(dout, cache):
    xhat, gamma, var, train = cache
    g = dout * gamma
    dx = norm_grad(g, xhat, var) if train else g / np.sqrt(var + 1e-5)
    return dx, (dout * xhat).sum(0), dout.sum(0)


def batchnorm_backward_wrong(dout, cache):
    xhat, gamma, var, _ = cache
    return dout * gamma / np.sqrt(var + 1e-5), (dout * xhat).sum(0), dout.sum(0)


def softmax_loss(x, y):
    logs, n = log_softmax(x), len(x)
    delta = np.exp(logs)
    delta[np.arange(n), y] -= 1
    return -logs[np.arange(n), y].mean(), delta / n


def softmax_loss_wrong(x, y):
    loss, delta = softmax_loss(x, y)
    return loss, delta * len(x)


# ---- losses as objects -------------------------------------------------------------------------


class Squares:
    """Hands the prediction and the target to backward again."""

    wrong = 2

    def forward(self, y_pred, y_true):
        return ((y_pred - y_true) ** 2).mean()

    def backward(self, y_pred, y_true):
        return self.wrong * (y_pred - y_true) / y_pred.size


class Gets:
    wrong = False

    def get(self, y_pred, y):
        return (softmax_loss_wrong if self.wrong else softmax_loss)(y_pred, y)


class LossAndGradient:
    wrong = 2

    def loss(self, predicted, actual):
        return ((predicted - actual) ** 2).sum()

    def gradient(self, predicted, actual):
        return self.wrong * (predicted - actual)


class OneHot:
    """Cross-entropy of logits and one-hot targets; backward takes nothing."""

    wrong = 1

    def forward(self, logits, target):
        self.logs, self.target = log_softmax(logits), target
        return -(self.logs * target).sum() / len(logits)

    def backward(self):
        return (np.exp(self.logs) - self.target) / len(self.logs) * self.wrong


# ---- lists, dicts, Parameter objects, get_params -----------------------------------------------


class Lists:
    wrong = 1

    def __init__(self):
        W, b = RNG.standard_normal((4, 3)), np.zeros(3)
        self.params, self.grads = [W, b], [np.zeros_like(W), np.zeros_like(b)]

    def forward(self, x):
        self.x = x
        return x @ self.params[0] + self.params[1]

    def backward(self, dout):
        self.grads[0][...] = self.x.T @ dout
        self.grads[1][...] = dout.sum(0) * self.wrong
        return dout @ self.params[0].T


class Dicts(Lists):
    def __init__(self, out=3):
        self.params = {"W": RNG.standard_normal((4, out)), "b": np.zeros(out)}
        self.grads = {}

    def forward(self, x):
        self.x = x
        return x @ self.params["W"] + self.params["b"]

    def backward(self, dout):
        self.grads = {"dW": self.x.T @ dout, "db": dout.sum(0) * self.wrong}
        return dout @ self.params["W"].T


class Param:
    def __init__(self, value):
        self.value = value
        self.grad = np.zeros_like(value)


class Params:
    wrong = 1

    def __init__(self):
        self.W, self.B = Param(RNG.standard_normal((4, 3))), Param(np.zeros(3))

    def forward(self, X):
        self.X = X
        return X @ self.W.value + self.B.value

    def backward(self, d_out):
        self.W.grad += self.X.T @ d_out
        self.B.grad += d_out.sum(0) * self.wrong
        return d_out @ self.W.value.T

    def params(self):
        return {"W": self.W, "B": self.B}


class GetSet:
    """get_params hands out a copy of its dict, set_params takes one."""

    wrong = 1

    def __init__(self):
        self._held = {"weights": RNG.standard_normal((4, 3)), "biases": np.zeros(3)}

    def get_params(self):
        return dict(self._held)

    def set_params(self, params):
        self._held = dict(params)

    def get_grads(self):
        return self._grads

    def forward(self, x):
        self.x = x
        return x @ self._held["weights"] + self._held["biases"]

    def backward(self, dout):
        self._grads = {"weights": self.x.T @ dout * self.wrong, "biases": dout.sum(0)}
        return dout @ self._held["weights"].T


class Listed(Affine):
    """Parameters and gradients as lists, from methods."""

    def get_parameters(self):
        return [self.W, self.b]

    def get_grad_params(self):
        return [self.dW, self.db]


# ---- tensors, gradients by hand ----------------------------------------------------------------


class TensorLinear:
    wrong = 1

    def __init__(self, width=4, out=3):
        self.weight = torch.randn(out, width, generator=torch.Generator().manual_seed(0))
        self.bias = torch.zeros(out)

    def forward(self, x):
        self.x = x
        return torch.addmm(self.bias, x, self.weight.t())

    def backward(self, grad):
        self.weight_grad = grad.t().mm(self.x) * self.wrong
        self.bias_grad = grad.sum(dim=0)
        return grad.mm(self.weight)


class TensorReLU:
    wrong = 0.0

    def forward(self, x):
        self.x = x
        return x.clamp(min=0)

    def backward(self, grad):
        return torch.where(self.x > 0, grad, self.wrong * grad)


# ---- models ------------------------------------------------------------------------------------


class Chain:
    """A list of layers of whichever form."""

    def __init__(self, *layers):
        self.layers = list(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dout):
        for layer in self.layers[::-1]:
            dout = layer.backward(dout)
        return dout


class ReLU:
    def forward(self, x):
        self.x = x
        return np.maximum(x, 0)

    def backward(self, dout):
        return dout * (self.x > 0)


class Numbered:
    """W1, b1, W2, b2 as attributes, in an order of their own."""

    wrong = 1

    def __init__(self):
        self.W1, self.W2 = RNG.standard_normal((4, 5)), RNG.standard_normal((5, 3))
        self.b1, self.b2 = np.zeros(5), np.zeros(3)

    def forward(self, x):
        self.x, self.h = x, np.tanh(x @ self.W1 + self.b1)
        return self.h @ self.W2 + self.b2

    def backward(self, dout):
        self.dW2, self.db2 = self.h.T @ dout, dout.sum(0)
        dh = dout @ self.W2.T * (1 - self.h**2) * self.wrong
        self.dW1, self.db1 = self.x.T @ dh, dh.sum(0)
        return dh @ self.W1.T


def made(cls, *arguments, **changes):
    layer = cls(*arguments)
    for name, value in changes.items():
        setattr(layer, name, value)
    return layer


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def stack():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))


ROWS, IMAGES, LABELS = (8, 4), (2, 3, 5, 5), parity.labels(8, classes=5)
LINEAR = (nn.Linear(4, 3), ROWS)
CROSS = (nn.CrossEntropyLoss(), (8, 5), LABELS)
BN = (nn.BatchNorm1d(4), ROWS)
PLAIN_BN = (nn.BatchNorm1d(4, affine=False), ROWS)
NLL = (nn.NLLLoss(), parity.log_probabilities(8, 5), LABELS)

# form: a right one, a wrong one, what they are held against, the quantity that is wrong
FORMS = {
    "attributes-linear": (Affine(), made(Affine, wrong=0.5), LINEAR, "grad_weight"),
    "attributes-square": (Affine(4, 4), made(Affine, 4, 4, wrong=2), (nn.Linear(4, 4), ROWS),
                          "grad_weight"),
    "attributes-conv": (KernelsLast(), made(KernelsLast, wrong=1), (nn.Conv2d(3, 4, 2), IMAGES),
                        "grad_bias"),
    "attributes-batchnorm": (BatchNorm(), made(BatchNorm, unbiased=False), BN,
                             "buffer_running_var"),
    "torch7-linear": (Linear7(), made(Linear7, wrong=2), LINEAR, "grad_weight"),
    "torch7-batchnorm": (BatchNorm7(), made(BatchNorm7, wrong=0.1), PLAIN_BN, "forward"),
    "torch7-model": (Sequential7(Linear7(4, 4), ReLU7(), Linear7(4, 3)),
                     Sequential7(Linear7(4, 4), ReLU7(), made(Linear7, wrong=2)), (stack(), ROWS),
                     "grad_2.weight"),
    "torch7-criterion": (parity.one_hot_targets(Criterion7()),
                         parity.one_hot_targets(made(Criterion7, wrong=8)), NLL, "grad_input0"),
    "functions-linear": ((affine_forward, affine_backward), (affine_forward, affine_backward_wrong),
                         LINEAR, "grad_bias"),
    "functions-square": (parity.functions(affine_forward, affine_backward),
                         parity.functions(affine_forward, affine_backward_wrong),
                         (nn.Linear(4, 4), ROWS), "grad_bias"),
    "functions-conv": ((conv_forward, conv_backward), (conv_forward, conv_backward_wrong),
                       (nn.Conv2d(3, 4, 3, padding=1), IMAGES), "grad_weight"),
    "functions-batchnorm": ((batchnorm_forward, batchnorm_backward),
                            (batchnorm_forward, batchnorm_backward_wrong), BN, "grad_input0"),
    "functions-loss": (softmax_loss, softmax_loss_wrong, CROSS, "grad_input0"),
    "loss-again": (Squares(), made(Squares, wrong=1), (nn.MSELoss(), ROWS, ROWS), "grad_input0"),
    "loss-get": (Gets(), made(Gets, wrong=True), CROSS, "grad_input0"),
    "loss-gradient": (LossAndGradient(), made(LossAndGradient, wrong=1),
                      (nn.MSELoss(reduction="sum"), ROWS, ROWS), "grad_input0"),
    "loss-one-hot": (parity.one_hot_targets(OneHot(), classes=5),
                     parity.one_hot_targets(made(OneHot, wrong=-1)), CROSS, "grad_input0"),
    "lists": (Lists(), made(Lists, wrong=2), LINEAR, "grad_bias"),
    "dicts": (Dicts(), made(Dicts, wrong=2), LINEAR, "grad_bias"),
    "parameter-objects": (Params(), made(Params, wrong=2), LINEAR, "grad_bias"),
    "get-set-params": (GetSet(), made(GetSet, wrong=2), LINEAR, "grad_weight"),
    "lists-from-methods": (Listed(), made(Listed, wrong=2), LINEAR, "grad_weight"),
    "called": (Called(), made(Called, wrong=2), LINEAR, "grad_weight"),
    "called-factory": (Called, lambda: made(Called, wrong=2), LINEAR, "grad_weight"),
    "called-dicts": (CalledDicts(), made(CalledDicts, wrong=2), LINEAR, "grad_weight"),
    "called-loss": (CalledLoss(), made(CalledLoss, wrong=2), (nn.MSELoss(), ROWS, ROWS),
                    "grad_input0"),
    "tensors-linear": (TensorLinear(), made(TensorLinear, wrong=2), LINEAR, "grad_weight"),
    "tensors-relu": (TensorReLU(), made(TensorReLU, wrong=0.1), (nn.ReLU(), ROWS), "grad_input0"),
    "model-of-attributes": (Chain(Affine(4, 4), ReLU(), Affine()),
                            Chain(Affine(4, 4), ReLU(), made(Affine, wrong=2)), (stack(), ROWS),
                            "grad_2.weight"),
    "model-of-dicts": (Chain(Dicts(4), ReLU(), Dicts()),
                       Chain(Dicts(4), ReLU(), made(Dicts, wrong=2)), (stack(), ROWS),
                       "grad_2.bias"),
    "model-numbered": (Numbered(), made(Numbered, wrong=2), (mlp(), ROWS), "grad_0.weight"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_right_one_passes_as_it_is(form):
    """Nothing is mapped by hand; the object is bit for bit what it was."""
    right, _, against, _ = FORMS[form]
    given = right.inner._layer if hasattr(right, "inner") else right
    before = copy.deepcopy(given)
    report = parity.check(right, *against)
    assert report.passed, str(report)
    assert same(before, given)


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_one_is_refused(form):
    """The quantity that is wrong is a MISMATCH."""
    _, wrong, against, quantity = FORMS[form]
    report = parity.check(wrong, *against, diagnose=False, rungs=("float64",))
    assert not report.passed
    assert Verdict.MISMATCH in {f.verdict for f in report.of(quantity)}, str(report)


def same(one, other):
    """Whether two objects hold the same bits."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if hasattr(one, "__dict__") and not callable(one):
        return same(vars(one), vars(other))
    return True


def test_the_report_says_how_the_names_were_read():
    report = parity.check(Affine(), *LINEAR)
    assert "attributes: W is weight as (in, out), b is bias" in report.notes


def test_a_loss_of_a_form_is_given_no_upstream_gradient():
    assert not adapt(Squares()).spawn("float64").takes_upstream()
    assert not adapt(softmax_loss).spawn("float64").takes_upstream()
    assert adapt(Affine()).spawn("float64").takes_upstream()
