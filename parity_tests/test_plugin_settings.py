"""What a run is asked for in [tool.parity] and on the command line, and what is refused."""

import pytest

from parity.findings import UsageError
from parity.settings import read_settings, spans


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("sedes = 0", "unknown key 'sedes', did you mean 'seeds'?"),
        ("seeds = -1", "[tool.parity] seeds is -1"),
        ("seeds = []", "[tool.parity] seeds is []"),
        ("seeds = true", "[tool.parity] seeds is True"),
        ("dtypes = 'float46'", "did you mean 'float64'?"),
        ("dtypes = []", "[tool.parity] dtypes is []"),
        ("device = 3", "[tool.parity] device is 3"),
        ("strict = 'yes'", "[tool.parity] strict is 'yes'; it must be true or false"),
        ("report = 1", "[tool.parity] report is 1"),
        ("gaps = 'none'", "[tool.parity] gaps is 'none'; it must be a table"),
        ("gaps = {grad_bias = ''}", "it must be a sentence"),
    ],
)
def test_mistyped_tables_end_in_one_line(tmp_path, table, says):
    (tmp_path / "pyproject.toml").write_text(f"[tool.parity]\n{table}\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_settings({}, tmp_path, tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_that_are_none(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool]\nparity = 3\n", encoding="utf-8")
    with pytest.raises(UsageError, match="it must be a table"):
        read_settings({}, tmp_path, tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool\n", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings({}, tmp_path, tmp_path)


def test_the_command_line_wins(tmp_path):
    text = '[tool.parity]\nseeds = [3, 4]\ndtypes = "float32"\nstrict = true\nreport = "out"\n'
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    here = tmp_path / "tests"
    settings = read_settings({}, tmp_path, here)
    assert settings.seeds == (3, 4)
    assert settings.dtypes == ("float32",)
    assert settings.strict
    assert settings.report == tmp_path / "out"
    given = {"seeds": "0-2 9", "dtypes": "float64,float32", "report": "there"}
    settings = read_settings(given, tmp_path, here)
    assert settings.seeds == (0, 1, 2, 9)
    assert settings.dtypes == ("float64", "float32")
    assert settings.report == here / "there"
    assert settings.repeat == ("--parity-dtypes", "float64,float32")
    assert spans(settings.seeds) == "0-2,9"
