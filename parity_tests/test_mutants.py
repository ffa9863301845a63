"""A fixed third of the catalogue is killed and named; every unseen fault is killed."""

import pytest

from fixtures.mutants import FAMILIES, MUTANTS, UNSEEN
from fixtures.mutants.row import tried

# what is killed, and known to be left without its name: the study tells of these
NAMELESS = {
    "batchnorm2d-count-of-batch",
    "batchnorm2d-running-var-of-mean",
    "bce-unclamped",
    "bce-unclamped-certain",
    "dropout-fresh-mask",
    "loop-never-evaluates",
    "normalize-not-flattened-order",
    "sgd-forgets-old",
}
SURVIVES = {"bce-unclamped"}  # probabilities of exactly 0 and 1 are not drawn unasked


@pytest.mark.parametrize("mutant", MUTANTS[::4], ids=lambda mutant: mutant.id)
def test_a_mutant_is_killed_and_named(mutant):
    trial = tried(mutant)
    assert trial.killed or mutant.id in SURVIVES, mutant.fault
    if mutant.id not in NAMELESS:
        assert trial.named, f"{mutant.fault}: {trial.names or 'no name'}, right: {trial.causes}"


@pytest.mark.parametrize("mutant", UNSEEN[::2], ids=lambda mutant: mutant.id)
def test_an_unseen_fault_is_killed_and_not_named_wrongly(mutant):
    trial = tried(mutant)
    assert trial.killed, mutant.fault
    assert not trial.names or trial.named, f"{mutant.fault} is called {trial.names}"


def test_the_catalogue_is_complete():
    ids = [mutant.id for mutant in (*MUTANTS, *UNSEEN)]
    assert len(ids) == len(set(ids))
    assert len(MUTANTS) >= 120
    assert all(FAMILIES.values())
    for mutant in MUTANTS:
        assert mutant.fault, mutant.id
        assert mutant.causes, mutant.id
    assert {*NAMELESS, *SURVIVES} <= set(ids)
