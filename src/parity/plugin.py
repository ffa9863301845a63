"""The pytest plugin: options, the ``parity`` fixture, the header, and the report of a run."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

import pytest

from parity.findings import UsageError
from parity.session import Fixture, Session, closed, current, opened
from parity.settings import FLAGS, read_settings

ARGUMENTS = ("case", "check")  # of a parametrized test
SESSION = pytest.StashKey[Session]()
RECORD = pytest.StashKey[Any]()  # what the controller gathers, its own and its workers' findings


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare --parity-seeds and the others, in a group of their own."""
    group = parser.getgroup("parity", "parity: hand-written layers against torch")
    for name, how, text in FLAGS:
        group.addoption(f"--parity-{name}", dest=f"parity_{name}", default=None, help=text, **how)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings of the run; what is mistyped ends it with one line."""
    from parity.annotating import Annotations
    from parity.reporting.record import Record

    given = {name: getattr(config.option, f"parity_{name}", None) for name, _, _ in FLAGS}
    try:
        settings = read_settings(given, config.rootpath, config.invocation_params.dir)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[SESSION] = opened(Session(settings, plugged=True))
    config.stash[RECORD] = Record.of(settings)
    config.pluginmanager.register(config.stash[RECORD], "parity.record")
    if not hasattr(config, "workerinput"):  # workers' tests are heard of by their controller
        config.pluginmanager.register(Annotations(config.rootpath), "parity.annotations")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the floor back to the run around this one, if there is one."""
    session = config.stash.get(SESSION, None)
    if session is not None:
        closed(session)


def pytest_report_header(config: pytest.Config) -> str:
    """Say which versions are compared, read from metadata, and from which seeds."""
    from parity.reporting.summary import header

    return header(config.stash[SESSION].settings)


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Fixture:
    """Assert parity: ``parity(mine, theirs, (8, 4))``; all other names are the module's."""
    return Fixture(request.config.stash[SESSION], request.node.name)


def table(rows: Iterable[tuple[Any, Any, str]]) -> pytest.MarkDecorator:
    """Return the decorator of ``def test(case, check)`` for rows of (case, check, id)."""
    params = [pytest.param(case, check, id=name) for case, check, name in rows]
    return pytest.mark.parametrize(ARGUMENTS, params)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Say what a parametrized test takes, before pytest misses an argument of it."""
    ours = any(m.args[:1] == (ARGUMENTS,) for m in metafunc.definition.iter_markers("parametrize"))
    if ours and not {*ARGUMENTS} <= {*metafunc.fixturenames}:
        name = metafunc.function.__name__
        pytest.fail(
            f"@parity.parametrize gives every test a case and a check: "
            f"def {name}(case, check): check(case)",
            pytrace=False,
        )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember which test runs: its id stands in the line that runs it again."""
    config: Any = item.config  # node ids are plain text in one pytest, a type in another
    current().start(str(item.nodeid), str(config.cwd_relative_nodeid(item.nodeid)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Hang the findings on the test's report, which xdist carries to the controller."""
    outcome = yield
    found = item.config.stash[SESSION].take()
    if found:
        outcome.get_result().parity = found


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report, once, where there is somebody to write it for."""
    config = session.config
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        if not config.stash[RECORD].finish():
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many findings there were of each verdict, and where the report is."""
    from parity.reporting.summary import closing

    for line, bad in closing(config.stash[RECORD]):
        terminalreporter.write_line(line, red=bad)
