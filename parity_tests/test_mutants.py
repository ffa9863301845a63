"""The catalogue of faults is killed and named, none wrongly: a fixed quarter of it, and all."""

import pytest

from fixtures.mutants import FAMILIES, MUTANTS, UNSEEN
from fixtures.mutants.row import tried

NAMED = 0.95  # of the faults whose cause is on a list: at least this share is named rightly


@pytest.mark.parametrize("mutant", MUTANTS[::20], ids=lambda mutant: mutant.id)
def test_a_mutant_is_killed_and_named(mutant):
    trial = tried(mutant)
    assert trial.killed, mutant.fault
    assert trial.named, f"{mutant.fault}: {trial.names or 'no name'}, right: {trial.causes}"


@pytest.mark.parametrize("mutant", UNSEEN[::16], ids=lambda mutant: mutant.id)
def test_an_unseen_fault_is_killed_and_not_named_wrongly(mutant):
    trial = tried(mutant)
    assert trial.killed, mutant.fault
    assert not trial.names or trial.named, f"{mutant.fault} is called {trial.names}"


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("batchnorm2d-bias-forgotten", 1),  # a constant channel without its bias vanishes
        ("softplus-naive", 1),  # overflows as a threshold of 1e30 would
        ("softplus-threshold-forgotten", 1),  # a value beyond both thresholds
        ("logsoftmax-log-of-softmax", 2),  # one value of all is infinite: no corner
        ("logsoftmax-log-of-softmax", 3),  # infinities, and numbers that are nearly some
        ("crossentropy-one-hot-missing", 1),  # scores of a thousand
        ("crossentropy-whole-maximum", 6),  # rows that chance leaves near each other
        ("maxpool2d-pads-zero", 4),  # images without a negative border
    ],
)
def test_a_name_does_not_hang_on_the_seed(name, seed):
    trial = tried(next(mutant for mutant in MUTANTS if mutant.id == name), seed=seed)
    assert trial.named, trial.names


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "unseen"])
def test_a_whole_family_is_killed_and_named(family):
    trials = [tried(mutant) for mutant in FAMILIES.get(family, UNSEEN)]
    assert not [t.id for t in trials if not t.killed]
    assert not [(t.id, t.names) for t in trials if t.misnamed]
    known = [t for t in trials if t.causes]
    named = [t for t in known if t.named]
    assert len(named) >= NAMED * len(known), [t.id for t in known if not t.named]


def test_the_catalogue_is_complete():
    ids = [mutant.id for mutant in (*MUTANTS, *UNSEEN)]
    assert len(ids) == len(set(ids))
    assert len(MUTANTS) >= 120
    assert all(FAMILIES.values())
    for mutant in MUTANTS:
        assert mutant.fault, mutant.id
        assert mutant.causes, mutant.id
