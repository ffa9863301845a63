"""Every optimizer of impl beside torch.optim's: on recorded gradients, and in training."""

import parity
from fixtures.cases.optimizers import STEPS, TRAININGS


@parity.parametrize(STEPS)
def test_steps(case, check):
    check(case)


@parity.parametrize(TRAININGS)
def test_trainings(case, check):
    check(case)
