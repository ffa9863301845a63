"""Correct layers by other algorithms get the verdict that they must get."""

import json

import pytest

from fixtures.population import POPULATION
from fixtures.study import main
from fixtures.study_parts import check_of, curve
from fixtures.study_tables import joined

pytestmark = pytest.mark.slow  # with the slow tests: the quick run stays under three minutes


@pytest.mark.parametrize("member", POPULATION[::2], ids=lambda member: member.id)
def test_a_correct_layer_gets_its_verdict(member):
    report = member.report()
    assert member.right(report), report


def test_roughness_is_told_with_its_ratio():
    member = next(m for m in POPULATION if m.id == "mse-naive-sum-of-100000")
    report = member.report()
    rough = [f for f in report.findings if f.verdict == "INACCURATE"]
    assert report.passed
    assert rough
    assert all(f.evidence["usage"] > 1 for f in rough)


def test_the_curve_counts_what_lies_beyond():
    found = curve([0.0, 0.1, 0.5], 64.0)
    assert found["checks"] == 3
    assert found["beyond"]["4"] == 2
    assert found["beyond"]["32"] == 0
    assert found["largest"] > found["beyond"]["64"]


def test_quantities_belong_to_checks():
    assert check_of("grad_weight") == check_of("grad_0.bias") != check_of("grad_input0")
    assert check_of("trajectory") == "trajectory"


def part(**more):
    return {"threads": 1, "capability": "X", "versions": {}, **more}


def row(id, killed=True, named=True, misnamed=False):
    return {"id": id, "seed": 0, "killed": killed, "named": named, "misnamed": misnamed,
            "known": True, "names": ["a"], "causes": ["a"], "checks": ["forward"]}  # fmt: skip


def test_parts_are_joined():
    one = part(mutants={"dense": [row("a"), row("b", killed=False, named=False)]}, unseen=[])
    usages = {"float64": curve([0.5], 64.0), "float32": curve([], 4.0)}
    two = part(correct={"seeds": [0], "verdicts": {"MATCH": 99, "MISMATCH": 1},
                        "alarms": ["x"], "strays": [], "curve": usages})  # fmt: skip
    whole = joined([one, two])
    rates = {item["name"]: (item["successes"], item["trials"]) for item in whole["rates"]}
    assert rates["own catalogue: killed"] == (1, 2)
    assert rates["killed by forward"] == (2, 2)
    assert rates["correct layers: false alarms"] == (1, 100)
    assert whole["survivors"] == ["b"]
    assert whole["curve"]["float64"]["beyond"]["16"] == 1


def test_the_command_refuses_what_makes_no_sense(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--seeds", "0", "--output", str(tmp_path)])
    assert "1 or more" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_study_is_plain_data():
    assert json.loads(json.dumps(joined([])))["survivors"] == []
