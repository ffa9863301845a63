"""Made-up records for the tests of reports."""

from parity.findings import Cause, Finding, Report, Verdict, Worst
from parity.reporting.record import Record
from parity.settings import Settings


def finding(case="linear", quantity="forward", verdict="MATCH", **facts):
    error = facts.pop("error", 1e-16)
    cause = facts.pop("cause", None)
    return Finding(
        case,
        quantity,
        verdict=Verdict(verdict),
        allowance=4e-16,
        worst=Worst((0, 1), 1.5, 1.25, 0.25),
        cause=cause,
        evidence={"error": error, "usage": error / 4e-16, "differing": 1, "size": 2, **facts},
    )


def sample(case="linear", faulty=True, version="2.13.0"):
    """A record of one case, one of whose quantities is wrong."""
    made = Record.of(Settings(seeds=(0, 3)))
    made.runs[0]["versions"] = {"torch": version, "numpy": "2.4.6", "python": "3.11.7"}
    cause = Cause("batch_sum_not_averaged", "weight.grad is 8 × torch's")
    parts = [
        finding(case),
        finding(case, "grad_weight", "MISMATCH", error=7.0, cause=cause)
        if faulty
        else finding(case, "grad_weight"),
    ]
    for part in parts:
        node = f"test_layers.py::test[{case}-{part.quantity}]"
        made.add(
            Report(case, (part,), rerun=f"pytest '{node}' --parity-seeds 0"), part.quantity, node
        )
    return made
