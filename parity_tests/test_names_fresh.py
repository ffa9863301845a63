"""Names that were once given to other faults: the right ones are given, or none."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import parity

X, LABELS = (8, 5), parity.labels(8, classes=5)
W5 = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)


class Twin(nn.Module):
    """A forward pass with the parameters and buffers of a reference."""

    def __init__(self, reference, function):
        super().__init__()
        self.function = function
        for name, parameter in reference.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))
        for name, buffer in reference.named_buffers():
            self.register_buffer(name, buffer.clone())

    def forward(self, *inputs):
        return self.function(self, *inputs)


def scaled(factor):
    """The identity, whose gradient is ``factor`` times what it is given."""

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return factor * g

    return Rule.apply


def checked(reference, function, *inputs, **options):
    report = parity.check(Twin(reference, function), reference, *inputs, **options)
    assert not report.passed
    return report


def names(report):
    return {f.cause.name for f in report.failures if f.cause}


def sentences(report):
    return {f.cause.sentence for f in report.failures if f.cause}


# ---- private modules of torch are no options of anyone's -----------------------------------------


class WeightNorm(nn.Module):
    """One norm for the whole weight, where torch has one for each row."""

    def __init__(self):
        super().__init__()
        self.g, self.v = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.ones(3, 4))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return F.linear(x, self.g * self.v / self.v.norm(), self.bias)


@pytest.mark.skipif(
    not hasattr(nn.utils.parametrizations, "weight_norm"), reason="not in this torch"
)
def test_a_private_module_is_not_varied():
    from parity.diagnosis.settings import changes

    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert not [path for path, _, _ in changes(theirs) if path]
    given = {name: f"parametrizations.weight.original{i}" for i, name in enumerate("gv")}
    report = parity.check(WeightNorm(), theirs, (8, 4), weights=given)
    assert not report.passed
    assert "_WeightNorm" not in str(report)
    assert "Parametrized" not in str(report)


# ---- factors -------------------------------------------------------------------------------------


@pytest.mark.one_in(5)
@pytest.mark.parametrize("k", [0.75, 4 / 3, 1.5, 12.0, 2 / 3])
def test_a_factor_is_not_made_of_chance_numbers(k):
    report = checked(nn.Linear(4, 3), lambda m, x: F.linear(scaled(k)(x), m.weight, m.bias), (8, 4))
    assert names(report) == {"constant_factor"}


def test_a_class_is_left_out_of_class_losses_alone():
    loss = nn.MultiMarginLoss()

    def over_others(m, x, y):
        return loss(x, y) * x.shape[1] / (x.shape[1] - 1)

    assert names(checked(loss, over_others, X, LABELS)) == {"divided_by_other_classes"}


def test_a_factor_without_a_number_reads_well():
    from parity.diagnosis.registry import multiple

    assert multiple(-0.5) == "-1/2"
    report = checked(nn.MSELoss(), lambda m, x, y: -F.mse_loss(x, y) / 2, X, X)
    assert "-1/2 × torch's: the sign is flipped, and a factor of 2 is missing" in str(report)


def rows_of(reference, function, *inputs, cause, says=""):
    name = f"{cause}-{type(reference).__name__}"
    return pytest.param(reference, function, inputs, cause, says, id=name)


UP = nn.Upsample(scale_factor=2)
CTC = (
    parity.log_probabilities(10, 4, 5),
    lambda g: g.integers(1, 5, (4, 3)),
    np.full(4, 10),
    np.full(4, 3),
)
CE, NLL = nn.CrossEntropyLoss, nn.NLLLoss


def attend(q, k, v, causal=True, axis=-1, ahead=0):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(ahead)
        scores = scores.masked_fill(~seen, -math.inf)
    return scores.softmax(axis) @ v


class Causal(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def gru_cell(m, x, h):
    given, kept = F.linear(x, m.weight_ih, m.bias_ih), F.linear(h, m.weight_hh, m.bias_hh)
    (a, b, c), (d, e, f) = given.chunk(3, -1), kept.chunk(3, -1)
    r, z = torch.sigmoid(a + d), torch.sigmoid(b + e)
    return z * torch.tanh(c + r * f) + (1 - z) * h


def lstm(m, x):
    h, c, steps = x.new_zeros(x.shape[1], 4), x.new_zeros(x.shape[1], 4), []
    for item in x:
        given = F.linear(item, m.weight_ih_l0, m.bias_ih_l0)
        i, f, g, o = (given + F.linear(h, m.weight_hh_l0, m.bias_hh_l0)).chunk(4, -1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        steps.append(h)
    return torch.stack(steps), (h[None], c[None])


def for_logits(m, p, y):
    moving = ((p - y).detach() * p).mean()
    return F.binary_cross_entropy(p, y).detach() + moving - moving.detach()


def tensorflow(m, x):
    pads = []
    for n in reversed(x.shape[2:]):
        total = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), m.weight, m.bias, stride=2)


ROWS = [
    rows_of(nn.HuberLoss(delta=3.0), lambda m, x, y: F.smooth_l1_loss(x, y, beta=3.0),
            parity.normal(6, 4, scale=3), (6, 4), cause="divided_by_delta"),
    rows_of(CE(weight=W5), lambda m, x, y: F.cross_entropy(
        x, y, (W5 / W5.mean()).to(x), reduction="sum") / len(y), X, LABELS,
            cause="weights_normalised"),
    rows_of(nn.CTCLoss(), lambda m, *given: F.ctc_loss(*given, reduction="none").mean(), *CTC,
            cause="target_lengths_not_divided"),
    rows_of(nn.EmbeddingBag(6, 3), lambda m, i: F.embedding_bag(i, m.weight, mode="sum"),
            parity.labels(4, 5, classes=6), cause="wrong_mode", says="EmbeddingBag(mode='sum')"),
    rows_of(UP, lambda m, x: UP(scaled(0.25)(x)), (2, 3, 4, 4), cause="averaged_over_copies"),
    rows_of(nn.LPPool2d(2, 2), lambda m, x: F.lp_pool2d(x, 2, 2) / 2, (2, 3, 4, 4),
            cause="averaged_over_window"),
    rows_of(nn.Dropout(0.5), lambda m, x: F.dropout(x, 0.5, m.training) / (1 + m.training), (6, 5),
            cause="dropout_not_scaled", says="1 - p is 0.5"),
    rows_of(CE(ignore_index=-1), lambda m, x, y: F.cross_entropy(
        x, y, ignore_index=-1, reduction="sum") / len(y), X, LABELS, cause="mean_divides_by_count",
            says="those that are not ignored"),
    rows_of(NLL(), lambda m, x, y: F.cross_entropy(x, y), parity.log_probabilities(8, 5), LABELS,
            cause="logarithm_added", says="log-softmax"),
    rows_of(nn.BCELoss(), for_logits, parity.uniform(6, 4, low=0.05, high=0.95),
            parity.uniform(6, 4, low=0.0, high=1.0), cause="derivative_of_logits"),
    rows_of(nn.Softmax2d(), lambda m, x: x.softmax(-1), (2, 3, 3, 3),
            cause="softmax_over_wrong_axis", says="the width (axis 3)"),
    rows_of(nn.RReLU(), lambda m, x: F.rrelu(x, 1 / 8, 1 / 3, m.training) if m.training
            else F.leaky_relu(x, 1 / 8), (6, 5), cause="slope_not_the_mean"),
    rows_of(nn.LeakyReLU(1.5), lambda m, x: torch.maximum(x, 1.5 * x), (6, 5),
            cause="larger_of_both"),
    rows_of(nn.GELU(), lambda m, x: 0.5 * x * (1 + torch.erf(x)), (6, 5),
            cause="root_of_two_missing"),
    rows_of(nn.CELU(2.0), lambda m, x: F.elu(x, 2.0), (6, 5), cause="alpha_not_divided"),
    rows_of(CE(), lambda m, x, y: F.nll_loss((x.softmax(1) + 1e-8).log(), y), X, LABELS,
            cause="epsilon_in_logarithm"),
    rows_of(CE(label_smoothing=0.1), lambda m, x, y: F.cross_entropy(
        x, y, label_smoothing=0.1 * x.shape[1] / (x.shape[1] - 1)), X, LABELS,
            cause="smoothing_over_other_classes"),
    rows_of(nn.KLDivLoss(reduction="batchmean"), lambda m, x, y: (
        x.exp() * (x - y.log())).sum() / len(x), parity.log_probabilities(6, 4),
            parity.probabilities(6, 4), cause="divergence_reversed"),
    rows_of(nn.Upsample(scale_factor=2, mode="bilinear"), lambda m, x: F.interpolate(
        x, scale_factor=2, mode="bilinear", align_corners=True), (2, 3, 4, 5),
            cause="wrong_align_corners"),
    rows_of(nn.Upsample(size=(7, 5)), lambda m, x: F.interpolate(x, (7, 5), mode="nearest-exact"),
            (2, 3, 4, 3), cause="wrong_mode"),
    rows_of(nn.Conv1d(3, 4, 3, padding=1), lambda m, x: F.conv1d(
        F.pad(x, (2, 0)), m.weight, m.bias), (2, 3, 9), cause="padding_one_sided", says="causal"),
    rows_of(nn.Conv2d(3, 4, 3, stride=2, padding=1), tensorflow, (2, 3, 8, 8),
            cause="padding_as_in_tensorflow"),
    rows_of(nn.LayerNorm(6), lambda m, x: F.layer_norm(x, (6,), 1 + m.weight, m.bias), (4, 6),
            cause="weight_added_to_one"),
    rows_of(nn.LayerNorm(6), lambda m, x: (x - x.mean(-1, keepdim=True)) / (
        x.std(-1, keepdim=True) + 1e-6) * m.weight + m.bias, (4, 6), cause="eps_outside_sqrt"),
    rows_of(nn.GRUCell(3, 4), gru_cell, (5, 3), (5, 4), cause="gates_swapped"),
    rows_of(nn.LSTM(3, 4), lstm, (5, 2, 3), cause="forget_bias_added"),
    *((
        rows_of(Causal(), lambda m, *qkv: attend(*qkv, causal=False), *[(2, 5, 4)] * 3,
                cause="causal_mask_missing"),
        rows_of(Causal(), lambda m, *qkv: attend(*qkv, ahead=1), *[(2, 5, 4)] * 3,
                cause="causal_mask_off_by_one"),
    ) if hasattr(F, "scaled_dot_product_attention") else ()),
]  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("reference", "function", "inputs", "cause", "says"), ROWS)
def test_the_right_name_is_given(reference, function, inputs, cause, says):
    report = checked(reference, function, *inputs, rungs=("exact", "float64", "probes"))
    assert names(report) == {cause}
    assert all(says in sentence for sentence in sentences(report))


# ---- what holds on the first pass or on ordinary data alone --------------------------------------


class BatchNorm(nn.BatchNorm1d):
    """Right, but for what ``kind`` says."""

    def __init__(self, features, kind):
        super().__init__(features)
        self.kind, self.waiting = kind, None

    def forward(self, x):
        usual = self.momentum
        first = self.num_batches_tracked == 0
        held = {name: b.clone() for name, b in self.named_buffers()}
        self.momentum = 1.0 if self.kind == "first" and first else usual
        try:
            y = super().forward(x)
        finally:  # a batch of 1 is refused
            self.momentum = usual
        if self.kind == "late" and self.training:
            new = {name: b.clone() for name, b in self.named_buffers()}
            for name, b in self.named_buffers():
                b.copy_((self.waiting or held)[name])
            self.waiting = new
        return y


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["first", "late"])
def test_a_rule_of_updating_holds_for_a_second_pass(kind):
    report = parity.check(BatchNorm(4, kind), nn.BatchNorm1d(4), (8, 4))
    assert not report.passed
    assert not names(report) & {"wrong_momentum", "running_statistics_not_updated"}


def test_a_floor_is_not_called_a_tiny_eps():
    def floored(m, x):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / var.clamp(min=1e-5).sqrt() * m.weight + m.bias

    report = checked(nn.LayerNorm(6), floored, (4, 6))
    assert "1e-20" not in str(report)
    assert all("a bound from below" in sentence for sentence in sentences(report))


def test_what_is_not_finite_anywhere_explains_nothing():
    def trap(m, x, y):
        off = (x - y).abs()
        return torch.where(off < 0.0, 0.5 * off * off / 0.0, off).mean()  # its gradient is NaN

    assert "half_missing" not in names(checked(nn.SmoothL1Loss(beta=0.0), trap, X, X))


def test_a_few_ordinary_points_are_no_corner():
    def band(m, x):
        return F.relu(x) * torch.where((x > 2) & (x < 2.5), 0.999, 1.0)

    report = checked(nn.ReLU(), band, (8, 8))
    assert not names(report) & {"boundary_value", "kink_derivative"}


def test_a_mask_that_shows_for_large_scores_alone_is_not_called_a_mask_of_zeros():
    def finite(m, q, k, v):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        return scores.masked_fill(~seen, -1e4).softmax(-1) @ v

    report = parity.check(Twin(Causal(), finite), Causal(), *[(2, 5, 4)] * 3)
    assert "masked_with_zero" not in names(report)


@pytest.mark.slow
def test_a_mapping_without_effect_is_no_cause():
    class Short(nn.Module):
        def __init__(self, steps):
            super().__init__()
            self.r, self.steps = nn.RNN(3, 4, batch_first=True), steps

        def forward(self, x):
            y = self.r(x[:, : self.steps])[0]
            return F.pad(y, (0, 0, 0, max(x.shape[1] - self.steps, 0)))

    report = parity.check(Short(5), Short(10**6), (2, 7, 3))
    assert not report.passed
    assert "wrong_mapping" not in names(report)


def test_a_parameter_that_is_not_used_is_named_before_its_missing_gradient():
    report = checked(nn.Linear(4, 3), lambda m, x: x @ m.weight.T, (8, 4))
    assert report.failures[0].cause.name == "bias_ignored"


# ---- where it differs ----------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("reference", "function", "inputs", "quantity", "says"),
    [
        (nn.Hardswish(), lambda m, x: torch.where(x < -3, x * 0.1, F.hardswish(x)), (X,), "forward",
         "only where x is at most -3"),
        (nn.Sigmoid(), lambda m, x: torch.sigmoid(x.clamp(-15, 15)), (X,), "forward",
         "only where |x| is at least "),
        (nn.Embedding(6, 3), lambda m, i: m.weight[i] * (i != 2).unsqueeze(-1),
         (parity.labels(4, 5, classes=6),), "forward", "only where the index is 2"),
    ],
    ids=["range", "large", "index"],
)  # fmt: skip
def test_a_place_is_named_by_all_draws(reference, function, inputs, quantity, says):
    report = checked(reference, function, *inputs)
    hints = [f.evidence.get("hint", "") for f in report.failures if f.quantity == quantity]
    assert says in hints[0]
    assert "tiny" not in hints[0]


@pytest.mark.slow
def test_the_first_axis_of_a_state_is_no_batch():
    class Last(nn.Module):
        def __init__(self, wrong):
            super().__init__()
            self.r, self.wrong = nn.RNN(3, 4, bidirectional=True, batch_first=True), wrong

        def forward(self, x):
            y, h = self.r(x)
            return y, torch.stack([h[0], y[:, -1, 4:]]) if self.wrong else h

    report = parity.check(Last(True), Last(False), (2, 5, 3))
    hints = [f.evidence.get("hint", "") for f in report.failures if f.quantity == "forward1"]
    assert hints
    assert all("sample" not in hint for hint in hints)


# ---- models --------------------------------------------------------------------------------------


class Net(nn.Module):
    """A small net with a tied weight, a normalisation, a dropout and a residual."""

    def __init__(self, wrong=""):
        super().__init__()
        self.a, self.n = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.d, self.b = nn.Dropout(0.3), nn.Linear(4, 4)
        self.wrong = wrong

    def forward(self, x):
        if self.wrong == "mode":
            self.n.eval()
        if self.wrong == "dropout":
            self.d.eval()
        h = self.d(torch.relu(self.n(self.a(x))))
        weight = self.a.weight.detach() if self.wrong == "tied" else self.a.weight
        y = self.b(h) @ weight
        return y if self.wrong == "residual" else y + x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("tied", "layer a (Linear) is the first to part, in backward (grad of weight): given "
         "torch's numbers it is right by itself: the parameter is used outside of the layer too"),
        ("mode", "layer n (BatchNorm1d) is the first to part, in forward: it runs in evaluation "
         "mode where torch's is in training mode"),
        ("dropout", "layer d (Dropout) is the first to part, in forward: it runs in evaluation"),
        ("residual", "every layer that both have gives what torch's gives, and the model's output "
         "is another: look at what the model does after its last one, b (Linear)"),
    ],
    ids=["tied", "mode", "dropout", "residual"],
)  # fmt: skip
def test_a_plain_layer_of_torch_is_not_accused(wrong, says):
    report = parity.check(Net(wrong), Net(), (6, 4), rungs=["float64"])
    first = report.failures[0]
    assert says in first.cause.sentence
    assert not first.evidence["own_fault"]
    assert "_SharedMask" not in str(report)
