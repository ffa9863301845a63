"""What users may hand to compare_predictions, and how the rest is refused."""

import math

import numpy as np
import pytest
import torch

from parity.statistics import compare_predictions


def test_no_discordant_items():
    labels = np.arange(2000) % 10
    result = compare_predictions(labels, labels.copy(), np.roll(labels, 3))
    assert result.identical
    assert result.agreement == 2000
    ps = (result.p_exact, result.p_midp, result.p_chi2, result.p_chi2_corrected)
    assert ps == (1, 1, 1, 1)
    assert (result.chi2, result.chi2_corrected, result.difference) == (0, 0, 0)
    assert result.equivalent
    assert result.notes == ()
    small = compare_predictions(labels[:100], labels[:100].copy(), labels[:100])
    assert not small.equivalent  # a hundred items cannot show one percentage point


def test_equally_wrong_is_not_identical():
    result = compare_predictions([0, 1, 2], [0, 1, 1], [0, 1, 0])
    assert (result.b, result.c, result.agreement, result.identical) == (0, 0, 2, False)
    assert result.statements[0] == (
        "mine and torch are right on the same items, p = 1 by definition, "
        "but predict different labels on 1 of 3."
    )


SCORES = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.1, 0.9], [0.4, 0.4, 0.2]])


@pytest.mark.parametrize(
    "given",
    [
        SCORES,
        torch.tensor(SCORES, requires_grad=True),
        torch.tensor(SCORES, dtype=torch.bfloat16),
        [1, 0, 2, 0],
        np.array([1, 0, 2, 0], dtype=np.uint8),
        np.array([1.0, 0.0, 2.0, 0.0], dtype=np.float32),
        np.array([1, 0, 2, 0], dtype=object),
        torch.tensor([1, 0, 2, 0]),
        [torch.tensor(label) for label in (1, 0, 2, 0)],
        SCORES.tolist(),
    ],
)
def test_labels_and_scores_of_many_kinds(given):
    result = compare_predictions(given, [1, 0, 2, 1], torch.tensor([1, 0, 2, 0]))
    assert result.table == ((3, 1), (0, 0))


def test_string_and_boolean_labels():
    truth = ["cat", "dog", "cat"]
    mine = np.array(truth, dtype=object)
    theirs = np.array([b"cat", b"cat", b"cat"])
    assert compare_predictions(mine, theirs, truth).table == ((2, 1), (0, 0))
    assert compare_predictions([True, False], [1, 1], [True, False]).table == ((1, 1), (0, 0))


@pytest.mark.parametrize(
    ("mine", "truth", "error", "message"),
    [
        ([0, 1], [0, 1, 2], ValueError, "differ in length: 2 for mine, 3 for torch, 3 for truth"),
        ([], [0, 1, 2], ValueError, r"mine is empty, shape \(0,\); there is nothing to compare"),
        ([0, np.nan, 1], [0, 1, 2], ValueError, "mine holds nan at position 1, which is no class"),
        ([0.2, 0.7, 0.1], [0, 1, 2], ValueError, "mine holds 0.2 at position 0.*give whole numb"),
        (np.full((3, 4), np.nan), [0, 1, 2], ValueError, "mine has NaN scores in 3 rows"),
        (np.ones((3, 1)), [0, 1, 2], ValueError, "single column whose argmax is always 0"),
        (np.ones((3, 2, 2)), [0, 1, 2], ValueError, r"an array with shape \(3, 2, 2\); give lab"),
        (np.ones((3, 2)), [0, 1, 2], ValueError, "scores for 2 classes, labels 0 to 1, but truth"),
        (5, [0, 1, 2], ValueError, r"mine is an array with shape \(\); give labels"),
        (["a", "b", "c"], [0, 1, 2], TypeError, "mine holds strings where torch and truth holds"),
        ([0, None, 2], [0, 1, 2], TypeError, "mine holds None; give labels of one kind"),
        (None, [0, 1, 2], TypeError, "mine holds None"),
        ([[0, 1], [2]], [0, 1, 2], ValueError, "mine cannot be read as an array: "),
        ([1j, 0, 0], [0, 1, 2], TypeError, "mine has dtype complex128; give integers"),
        (np.ma.array([0, 1, 2], mask=[0, 1, 0]), [0, 1, 2], ValueError, "mine has masked entries"),
        ([0, 1, 2], np.eye(3), ValueError, r"truth has shape \(3, 3\); give labels \(N,\)"),
        ([0, 1, 2], [0, 1, np.inf], ValueError, "truth holds inf at position 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(mine, truth, error, message):
    with pytest.raises(error, match=message) as caught:
        compare_predictions(mine, [0, 1, 2], truth)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"margin": 0}, ValueError, "margin is 0; it must lie between 0 and 1, 0.01 for one"),
        ({"margin": 1}, ValueError, "margin is 1; .*one percentage point"),
        ({"margin": "1%"}, TypeError, "margin is '1%'; give a number"),
        ({"confidence": 95}, ValueError, "confidence is 95; .* 0.95 for 95 percent"),
        ({"confidence": math.nan}, ValueError, "confidence is nan"),
        ({"names": ("a", "a")}, ValueError, "give two different ones"),
        ({"names": "ab"}, TypeError, "names is 'ab'; give two strings"),
        ({"names": None}, TypeError, "names is None; give two strings"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        compare_predictions([0], [0], [0], **options)


def test_vacuous_agreement_is_said():
    labels = np.zeros(5, int)
    notes = compare_predictions(labels, labels, [0, 1, 0, 1, 0]).notes
    assert notes[0] == "mine and torch are one object: nothing was compared."
    assert notes[1] == "mine predicts 0 for every item."
