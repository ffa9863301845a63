"""Every layer of impl beside its torch.nn counterpart, case by case."""

import parity
from fixtures.cases import LAYERS


@parity.parametrize(LAYERS)
def test_layers(case, check):
    check(case)
