"""A1, A2 and A3: both sides trained from the same weights, and every step compared."""

from functools import cache

import numpy as np
import pytest

import impl.models.convolution as mine
from fixtures.workloads import compare, train_numpy, train_torch
from fixtures.workloads.convolution import A1, A2, A3, A3_WHOLE
from fixtures.workloads.verified import (
    check_workload,
    contribute_statistics,
    contribute_trajectory,
    live_seeds,
)

PUBLISHED = (A1, A2, A3)


@cache
def runs(workload, seed, dtype="float64", quick=False):
    return tuple(train(workload, seed, dtype, quick) for train in (train_numpy, train_torch))


@pytest.mark.parametrize("workload", PUBLISHED, ids=lambda w: w.name)
def test_published_run_agrees_over_six_seeds(workload):
    seeds = live_seeds(workload, 6)
    assert len(seeds) == 6
    for seed in seeds:
        found = compare(*runs(workload, seed), workload.labels)
        assert found.total <= workload.published["sum_loss_difference_float64"], (seed, found)
        assert found.identical, (seed, found)
        narrow = compare(*runs(workload, seed, "float32"), workload.labels)
        assert narrow.total < workload.published["sum_loss_difference"], (seed, narrow)
        assert narrow.identical, (seed, narrow)


@pytest.mark.parametrize("workload", PUBLISHED, ids=lambda w: w.name)
def test_published_run_learns(workload):
    ours, _ = runs(workload, workload.seed)
    assert ours.losses[-1] < ours.losses[0] / 5


@pytest.mark.parametrize("workload", PUBLISHED, ids=lambda w: w.name)
def test_every_step_is_inside_what_rounding_explains(workload):
    report = check_workload(workload)
    assert report.passed, report
    assert set(report.counts()) == {"MATCH"}, report
    assert not report.not_covered, report
    (narrow,) = [f for f in report.of("trajectory") if f.dtype == "float32"]
    assert narrow.evidence["opened"] is None
    assert narrow.evidence["labels_agree"] == 1.0
    contribute_trajectory(workload, report, live_seeds(workload, 6))


def test_seeds_whose_net_dies_are_left_out_and_said():
    assert not set(A1.published["dead_seeds"]) & set(live_seeds(A1, 22))
    for seed in A1.published["dead_seeds"]:
        report = check_workload(A1, seed)
        assert report.passed, report
        assert "the gradient of 0.weight is exactly zero from step 2 on" in report.notes


def test_a_net_that_starts_dead_is_a_vacuity_until_it_is_expected():
    def kill(module, rng):
        module[0].bias.fill_(-100.0)

    dead = A1.but("A1-dead", initial=kill)
    report = check_workload(dead)
    assert not report.passed
    zero = {f.quantity for f in report.findings if f.verdict == "VACUOUS"}
    assert zero == {"grad_0.weight", "grad_0.bias", "grad_3.weight"}, report
    assert check_workload(dead, expects_zero=zero).passed


def test_the_skeletons_eps_passes_its_bar_and_not_ours():
    wrong = A2.but("A2-eps", model=lambda: mine.pooled_net(5, 2, eps=1e-20))
    found = compare(train_numpy(wrong), train_torch(wrong), wrong.labels)
    assert found.total < A2.published["sum_loss_difference"]
    report = check_workload(wrong)
    assert not report.passed
    assert report.failures[0].step == 1
    assert report.cause.name == "wrong_eps", report


def test_a_wrong_running_average_is_named_at_its_first_step():
    def model():
        net = mine.pooled_net(5, 2)
        net[1].momentum = 0.9
        return net

    report = check_workload(A2.but("A2-momentum", model=model))
    assert not report.passed
    assert report.failures[0].quantity.startswith("buffer_1.running_"), report
    assert report.failures[0].step == 1
    assert report.cause.name == "momentum_swapped", report


def test_the_bias_before_batchnorm_is_said_to_be_rounding():
    report = check_workload(A2)
    assert any("0.bias is zero by construction" in note for note in report.notes)


@pytest.mark.slow
def test_whole_digits_agree_step_by_step():
    report = check_workload(A3_WHOLE, quick=True)
    assert report.passed, report
    contribute_trajectory(A3_WHOLE, report)
    ours, theirs = runs(A3_WHOLE, A3_WHOLE.seed, quick=True)
    for part in ("train", "validation"):
        losses = [[loss for _, loss, _ in run.watched[part]] for run in (ours, theirs)]
        assert len(losses[0]) == A3_WHOLE.quick_epochs
        assert losses[0][-1] < losses[0][0]
        bar = A3.published["sum_loss_difference_float64"]
        assert np.abs(np.subtract(*losses)).sum() <= bar
    assert ours.watched["validation"][-1][2] == theirs.watched["validation"][-1][2] > 0.6


def test_whole_digits_predict_alike():
    found = contribute_statistics(A3_WHOLE, quick=True)
    assert found.n == 300
    assert found.identical
    assert (found.b, found.c, found.p_exact) == (0, 0, 1.0)
