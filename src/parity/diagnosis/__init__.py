"""The diagnosis: from a failing examination to the cause of each failure, in one sentence."""

from parity.diagnosis.diagnosing import diagnose as diagnose

__all__ = ["diagnose"]
