"""Every loss of impl beside its torch.nn counterpart, case by case."""

import parity
from fixtures.cases import LOSSES


@parity.parametrize(LOSSES)
def test_losses(case, check):
    check(case)
