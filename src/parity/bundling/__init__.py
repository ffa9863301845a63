"""Bundles: one failure as a folder of JSON and safetensors, read without running anything in it."""

from parity.bundling.arrays import damaged
from parity.bundling.reading import Bundle, read, value
from parity.bundling.rebuilding import rebuild
from parity.bundling.running import run, show
from parity.bundling.writing import write

__all__ = ["Bundle", "damaged", "read", "rebuild", "run", "show", "value", "write"]
