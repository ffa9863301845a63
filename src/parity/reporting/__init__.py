"""The report of a run: gathered, merged, and written as JSON, Markdown and one HTML page.

A report file is JSON with ``format``, ``version``, ``runs`` (versions, seeds, how the tests
ended), ``parts`` (what each test found) and ``sections`` (tables and curves that others hand
over, see :mod:`parity.reporting.sections`).
"""

from parity.reporting.merging import load, merge, write_merged
from parity.reporting.record import Record, contribute, record
from parity.reporting.sections import SECTIONS
from parity.reporting.writing import write

__all__ = ["SECTIONS", "Record", "contribute", "load", "merge", "record", "write", "write_merged"]
