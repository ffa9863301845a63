"""What impl refuses, in which words, and that torch refuses it too."""

import parity
from fixtures.cases import ALL_REJECTS


@parity.parametrize(ALL_REJECTS)
def test_rejects(case, check):
    check(case)
