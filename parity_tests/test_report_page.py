"""The HTML page of a report: one file, safe, readable by anybody, and alive in a browser."""

import html
import html.parser
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from parity.findings import Cause, Finding, Report, Verdict, Worst
from parity.reporting import merge, write
from parity.reporting.heat import error_map
from parity.reporting.page import FOLDER
from parity.reporting.page import html as page_of
from parity.reporting.record import Record
from parity.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = (
    "<script>document.title='owned'</script> \"quoted\" 'single' & 名前 \x1b[31m" + "long-" * 60
)

pytestmark = pytest.mark.slow  # draws and opens pictures: run by -m slow
VOID = {"meta", "link", "br", "img", "input", "path", "use", "hr", "circle", "rect", "stop"}


def finding(case, quantity="forward", verdict="MATCH", error=1e-16, **facts):
    import numpy as np

    if verdict == "MISMATCH":
        facts["heat"] = error_map(np.arange(12.0).reshape(3, 4), np.zeros((3, 4)))
    return Finding(
        case, quantity, verdict=Verdict(verdict), allowance=4e-16, worst=Worst((0,), 1.5, 1.0, 0.5),
        cause=Cause("none_of_ours", HOSTILE) if verdict == "MISMATCH" else None,
        evidence={"error": error, "usage": error / 4e-16, "message": HOSTILE, **facts},
    )  # fmt: skip


def full(version="2.13.0", faulty=True):
    """A record with everything that a page can show."""
    made = Record.of(Settings())
    made.runs[0]["versions"] = {"torch": version, "numpy": "2.4.6"}
    for i, case in enumerate(("conv2d-pad1", "linear", HOSTILE)):
        found = [finding(case, error=(i + 1) * 1e-17), finding(case, "grad_weight")]
        if faulty:
            found.append(finding(case, "grad_bias", "MISMATCH", error=10.0**i))
        made.add(
            Report(case, tuple(found), notes=(HOSTILE,), rerun=f"pytest '{case}'"), "", f"t::{case}"
        )
    curve = {"run": 0, "title": HOSTILE, "mine": [1.0, 0.6, "nan"], "torch": [1.0, 0.5, 0.4]}
    same = {**curve, "mine": curve["torch"], "dtype": "float32", "envelope": [0.0, 1e-8, 1e-7]}
    made.sections = {
        "trajectories": [curve, same],
        "statistics": [
            {"run": 0, "title": HOSTILE, "table": [[90, 3], [1, 6]], "rows": [["p", "0.6"]],
             "statements": [HOSTILE]}
        ],
        "figures": [
            {"run": 0, "title": HOSTILE, "alt": 'two "moons"',
             "svg": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">'
                    "<script>document.title='owned'</script><path d='M0 0h9v9z'/></svg>"}
        ],
        "speed": [{"run": 0, "name": HOSTILE, "ratio": 0.4, "low": 0.3, "high": 0.5}],
        "rates": [{"run": 0, "name": HOSTILE, "successes": 0, "trials": 20000}],
        "versions_ledger": [{"run": 0, "quantity": HOSTILE, "version": "2.9.1", "ulp": 2}],
    }  # fmt: skip
    return made


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Folders of a passing run, a failing one, and the two merged."""
    folder = tmp_path_factory.mktemp("pages")
    write(full(faulty=False), folder / "passing")
    write(full("2.4.1"), folder / "failing")
    write(merge([folder / "passing", folder / "failing"]), folder / "merged")
    return folder


class Outline(html.parser.HTMLParser):
    """Every tag with its attributes, and the text between tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.unclosed = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module", params=["passing", "failing", "merged"])
def outline(request, pages):
    return Outline((pages / request.param / "report.html").read_text("utf-8"))


# --- what the file holds ------------------------------------------------------------------------


def test_the_page_needs_no_network(outline):
    for tag, attributes in outline.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, name, value)
    policies = [a for _, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0]["content"].startswith("default-src 'none'")


def test_what_users_named_is_text(outline):
    assert [tag for tag, _ in outline.tags].count("script") == 1
    assert not [name for _, attributes in outline.tags for name in attributes if name[:2] == "on"]
    text = "".join(outline.text)
    assert "<script>document.title='owned'</script> \"quoted\" 'single' & 名前 \\x1b[31m" in text
    assert "\x1b" not in text


def test_the_page_is_well_formed(outline):
    assert not outline.unclosed
    assert not outline.open
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in outline.tags if tag == "a"]
    assert targets
    assert set(targets) <= set(ids)


def test_headings_names_and_alternatives(outline):
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    tags = outline.tags
    assert dict(tags)["html"]["lang"] == "en"
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all(
        a.get("aria-label") or a.get("aria-labelledby")
        for _, a in tags
        if a.get("role") in ("img", "group", "search")
    )
    assert all("scope" in a for tag, a in tags if tag == "th")
    # What scrolls can be reached by keyboard.
    assert all(
        a.get("tabindex") == "0" for tag, a in tags if "scroll" in a.get("class", "").split()
    )


def test_failures_link_to_cause_picture_and_rerun_line(pages):
    text = (pages / "failing" / "report.html").read_text("utf-8")
    assert re.search(r'<a class="verdict v-MISMATCH" href="#failure-1">MISMATCH</a>', text)
    article = text[text.index('<article id="failure-1"') :]
    article = article[: article.index("</article>")]
    assert "<strong>Cause:</strong>" in article
    assert 'aria-label="Where the error is: 11 of 12 cells differ, the largest by 11"' in article
    assert "<code>pytest &#39;conv2d-pad1&#39;</code>" in article
    assert "✗ Not good" in text
    assert "✓ All good" in (pages / "passing" / "report.html").read_text("utf-8")


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough_for_text(scheme):
    """WCAG AA asks for 4.5 to 1."""
    style = (FOLDER / "report.css").read_text("utf-8")
    roots = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", roots[scheme]))
    pairs = [(ink, ground) for ink in ("ink", "soft", "link") for ground in ("paper", "card")]
    pairs += [(name, f"{name}-bg") for name in ("good", "bad", "warn", "plain")]
    for ink, ground in pairs:
        low, high = sorted(luminance(colors[name]) for name in (ink, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_a_large_report_stays_small():
    """More rows, failures and pictures than a page can hold: it says what is left out."""
    made = Record.of(Settings())
    for i in range(800):
        parts = [finding(f"case-{i}", f"grad_{k}") for k in range(10)]
        for part in parts:
            part.evidence["message"] = ""
        broken = (finding(f"case-{i}", "forward", "MISMATCH"),) if i < 400 else ()
        made.add(Report(f"case-{i}", (*parts, *broken)), "", f"t::{i}")
    made.sections["figures"] = [
        {"run": 0, "title": "t", "alt": f"sheet {i}", "png": "A" * 1_000_000} for i in range(8)
    ]
    steps = [1.0 / (i + 1) for i in range(20_000)]
    made.sections["trajectories"] = [{"run": 0, "title": "t", "mine": steps, "torch": steps}]
    text = page_of(made)
    assert len(text.encode()) < 5_000_000
    assert "2400 more rows stand in report.json" in text
    assert "… and 100 more; report.json has them all." in text
    assert text.count("Left out, so that the page stays small") == 6


# --- in a browser -------------------------------------------------------------------------------

DRIVER = """<!DOCTYPE html><title>driver</title><iframe id="frame" src="%s"
style="width: 360px; height: 800px; border: 0"></iframe>
<pre id="found"></pre><script>
document.getElementById("frame").onload = (event) => {
  const page = event.target.contentDocument;
  const rows = () => Array.from(page.querySelectorAll("#table tbody tr")).filter((r) => !r.hidden);
  const cells = (i) => rows().map((row) => row.cells[i].textContent);
  const set = (id, value) => {
    const control = page.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event("input"));
  };
  const found = { all: rows().length, data: { ...page.documentElement.dataset } };
  set("find", "LINEAR grad"); found.linear = rows().length;
  set("verdict", "failed"); found.failed = cells(0);
  set("find", ""); set("verdict", "");
  const button = page.querySelector("button[data-key=error]");
  const place = button.closest("th").cellIndex;
  button.click(); found.down = cells(place); found.sort = button.closest("th").ariaSort;
  button.click(); found.up = cells(place);
  found.title = page.title;
  found.wide = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  found.after = { ...page.documentElement.dataset };
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>"""


def browse(page: Path, profile: Path, *flags):
    """Open a page in headless Chromium; return its document and what the console said."""
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={profile}", "--enable-logging=stderr",
            "--allow-file-access-from-files", "--virtual-time-budget=4000", *flags,
            "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("name", ["failing", "merged"])
def test_the_page_works_in_a_browser(name, pages, tmp_path):
    if not CHROMIUM:
        pytest.skip("NO BROWSER: the page was not opened; install chromium to test it")
    driver = pages / name / "driver.html"
    driver.write_text(DRIVER % "report.html", encoding="utf-8")
    document, console = browse(driver, tmp_path)
    # the figure's own script is stopped, which Chromium may say; nothing of the page's is
    assert not [line for line in console if "owned" in line or "Uncaught" in line], console
    found = json.loads(html_text(re.search(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)[1]))
    assert found["data"]["ready"] == str(found["all"])
    assert found["after"].get("error") is None
    assert found["data"].get("broken") == "0"
    assert found["title"] == "Parity report: not good"
    assert found["linear"] == {"failing": 2, "merged": 3}[name]
    assert found["failed"] == ["linear"]
    numbers = [[float(cell) for cell in found[way]] for way in ("down", "up")]
    assert numbers[0] == sorted(numbers[0], reverse=True)
    assert numbers[1] == sorted(numbers[1])
    assert numbers[0] != numbers[1]
    assert found["sort"] == "descending"
    assert found["wide"] <= 0  # nothing is wider than a phone


def html_text(text):
    return html.unescape(text)


def test_a_view_can_be_passed_on_by_its_address(pages, tmp_path):
    if not CHROMIUM:
        pytest.skip("NO BROWSER: the page was not opened; install chromium to test it")
    page = pages / "passing" / "report.html"
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text("utf-8"), encoding="utf-8")

    class Address:
        def as_uri(self):
            return copy.as_uri() + "#find=linear&sort=-quantity"

    document, console = browse(Address(), tmp_path / "profile")
    assert not console
    assert 'data-shown="2"' in document
    assert 'aria-sort="descending"' in document
