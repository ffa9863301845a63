"""Findings and reports as text: who, what, where, got, wanted, why, and how to run it again."""

from __future__ import annotations

import html

from parity.findings import GRAVITY, Finding, Report, Verdict

WORDS = {
    "untouched": "inputs and parameters untouched",
    "accumulate": "gradients add up",
    "repeat": "repeatability",
    "step": "optimizer steps",
    "aliasing": "output's memory",
    "dropout_mask": "dropout mask",
    "both": "both sides",
}
WIDTH = 110  # of what a report covers; findings keep one line each, to be searched
MOST = 8  # blocks that a text shows before it only counts


def quantity_text(quantity: str) -> str:
    """Return a quantity in words: ``grad_weight`` is "grad of weight"."""
    if quantity in WORDS:
        return WORDS[quantity]
    for prefix, words in (("grad_input", "grad of input "), ("grad_", "grad of ")):
        if quantity.startswith(prefix):
            return words + quantity.removeprefix(prefix)
    if quantity.startswith("buffer_"):
        return "buffer " + quantity.removeprefix("buffer_")
    if quantity.startswith("forward"):
        number = quantity.removeprefix("forward")
        return f"output {number}" if number else "forward output"
    return quantity.replace("_", " ")


def finding_text(finding: Finding, rerun: str | None = None) -> str:
    """Return the block of one finding."""
    where = [quantity_text(finding.quantity)]
    if finding.layer:
        where.insert(0, f"layer {finding.layer}")
    if finding.step is not None:
        where.append(f"step {finding.step}")
    facts = finding.evidence
    tags = [finding.dtype if finding.dtype != "exact" else "exact integers"]
    if facts.get("mode") == "eval":
        tags.append("evaluation mode")
    if facts.get("probe"):
        tags.append(str(facts["probe"]))
    tags = list(dict.fromkeys(tags))  # a probe may be named for its mode
    lines = [f"{finding.case} · {' · '.join(where)} · {finding.verdict} ({', '.join(tags)})"]
    numbers = numbers_text(finding)
    if numbers:
        lines.append(f"  {numbers}")
    message = facts.get("message")
    if message and not (finding.cause and finding.cause.sentence == message):
        lines.append(f"  {message}")
    if finding.cause:
        lines.append(f"  cause: {finding.cause.sentence}")
    elif finding.verdict is Verdict.MISMATCH:
        hint = facts.get("hint")
        lines.append(f"  cause: none that is known fits{'; ' + str(hint) if hint else ''}")
    if facts.get("traceback") and finding.verdict is Verdict.ERROR:
        shown = str(facts["traceback"]).rstrip().splitlines()[-8:]
        lines += [f"  | {line}" for line in shown]
    if rerun:
        lines.append(f"  again: {rerun}")
    return "\n".join(lines)


def numbers_text(finding: Finding) -> str:
    """Return how many elements differ, the worst of them, and what rounding explains."""
    facts, worst = finding.evidence, finding.worst
    if worst is None or finding.verdict in (Verdict.MATCH, Verdict.SKIPPED):
        return ""
    places = f" at {worst.index}" if worst.index else ""
    text = (
        f"{facts.get('differing', '?')} of {facts.get('size', '?')} elements differ; worst"
        f"{places}: mine {digits(worst.mine, worst.theirs)}, torch "
        f"{digits(worst.theirs, worst.mine)}; off by {worst.off:.2g}, rounding explains "
        f"{finding.allowance:.1g}"
    )
    ratio = facts.get("ratio_to_torch")
    if finding.verdict is Verdict.INACCURATE and ratio:
        text += f"; {ratio:.3g} times torch's own error"
    if finding.verdict is Verdict.INACCURATE and facts.get("shrink"):
        text += "; the error shrinks with the precision, so it is rounding, only rougher"
    return text


def digits(value: float, other: float) -> str:
    """Return ``value`` with as many digits as it takes to tell it from ``other``."""
    for precision in (5, 8, 12, 17):
        text = f"{value:.{precision}g}"
        if text != f"{other:.{precision}g}":
            return text
    return repr(value)


def report_text(report: Report) -> str:
    """Return the whole report: verdict first, failures, then what it covers and what not."""
    shown = distinct(report)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in report.counts().items())
    state = "PASSED" if report.passed else "FAILED"
    lines = [f"{report.case}: {state} ({counts or 'nothing was compared'})"]
    lines += [finding_text(finding, report.rerun) for finding in shown[:MOST]]
    if len(shown) > MOST:
        lines.append(f"  … and {len(shown) - MOST} more findings (report.findings has them all)")
    if report.covers:
        lines += wrapped("covers: " + "; ".join(report.covers))
    if report.not_covered:
        lines += wrapped("not covered: " + "; ".join(report.not_covered))
    for note in report.notes:
        lines += wrapped(f"note: {note}")
    return "\n".join(lines)


def wrapped(text: str) -> list[str]:
    """Return ``text`` as lines that fit a terminal, the further ones indented."""
    import textwrap

    return textwrap.wrap(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def distinct(report: Report) -> list[Finding]:
    """Return one finding a quantity and cause: the gravest rung speaks for the others."""
    kept: dict[tuple[str, str | None, int | None, object], Finding] = {}
    order = {verdict: i for i, verdict in enumerate(GRAVITY)}
    for finding in report.findings:
        if finding.verdict in (Verdict.MATCH, Verdict.SKIPPED):
            continue
        key = (finding.quantity, finding.layer, finding.step, finding.cause and finding.cause.name)
        if key not in kept or order[finding.verdict] < order[kept[key].verdict]:
            kept[key] = finding
    return sorted(kept.values(), key=lambda finding: order[finding.verdict])


def report_html(report: Report) -> str:
    """Return the report for a notebook; everything that users named is escaped."""
    color = "#1a7f37" if report.passed else "#b42318"
    state = "passed" if report.passed else "failed"
    rows = "".join(
        f"<tr><td>{html.escape(quantity_text(f.quantity))}</td>"
        f"<td>{html.escape(str(f.evidence.get('mode', '')))}</td><td>{html.escape(f.dtype)}</td>"
        f"<td>{f.verdict}</td>"
        f"<td>{html.escape(f.cause.sentence if f.cause else numbers_text(f))}</td></tr>"
        for f in report.findings
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    return (
        f'<div><p><strong style="color:{color}">{html.escape(report.case)}: {state}</strong></p>'
        "<table><thead><tr><th>quantity</th><th>mode</th><th>rung</th><th>verdict</th>"
        f"<th>why</th></tr></thead><tbody>{rows}</tbody></table><ul>{notes}</ul></div>"
    )
