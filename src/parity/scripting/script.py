"""The whole script, and its trial: whether the lines show what they are written for."""

from __future__ import annotations

import copy
import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import torch

from parity.findings import Verdict
from parity.scripting.closing import Closing
from parity.torch_side import seeded

MOST_LINES = 15


class Script(Closing):
    """Puts the lines together, and tries them."""

    def lines(self) -> list[str]:
        """Return the whole script."""
        imports, mine, theirs = self._sides()
        found = ["import numpy as np, torch", *imports, "rng = np.random.default_rng(0)"]
        found.append(f"mine, theirs = {mine}, {theirs}")
        start = len(found)
        if not self.draw.training:
            found.append(f"theirs.eval(); {self._evaluation()}")
        found += self._weights()
        rest = [*self._passes(), self._closing()]
        inputs = self._inputs()
        if len(found) + len(inputs) + len(rest) > MOST_LINES:
            inputs = ["; ".join(inputs)]
        spare = MOST_LINES - len(found) - len(inputs)
        if len(rest) > spare:  # the closing print stays alone
            rest = [*rest[: spare - 2], "; ".join(rest[spare - 2 : -1]), rest[-1]]
        self.body = [*found[start:], *inputs, *rest]
        return [*found[:start], *self.body]

    def shows(self) -> bool:
        """Whether the lines show the finding, tried on copies of both sides.

        A layer that is wrong for few numbers may well be right for those of a script.
        """
        said = io.StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said), np.errstate(all="ignore"):
                with warnings.catch_warnings(), seeded(0):
                    warnings.simplefilter("ignore")
                    exec("\n".join(self.body), self._namespace())
        except FileNotFoundError:  # an array that its reader has to save first
            return True
        except (Exception, SystemExit):
            return self.finding.verdict is Verdict.ERROR
        word = said.getvalue().split()[-1]
        try:
            off = float(word)
        except ValueError:
            return word != "False"
        least = max(self.finding.allowance / 10, 8 * float(np.finfo(self.dtype).eps))
        return not off <= least  # NaN is a difference too

    def _namespace(self) -> dict[str, Any]:
        theirs: Any = copy.deepcopy(self.pair.reference.original)
        theirs = (theirs if self.narrow else theirs.double()).train()
        mine: Any = (getattr(self.functions, n, None) for n in ("forward", "backward"))
        if self.torch_mine:
            mine = copy.deepcopy(self.origin.mine).train()
            mine = mine if self.narrow else mine.double()
        elif self.functions:
            mine = tuple(mine)
        else:
            runner = self.pair.subject.spawn(self.dtype)
            runner.mode(True)
            mine = runner.layer
        rng = np.random.default_rng(0)
        return {"np": np, "torch": torch, "rng": rng, "mine": mine, "theirs": theirs}
