"""Localisation: the first layer, direction and step at which two models part, and whose fault."""

from parity.localising.concluding import Localisation, localise, localise_failure

__all__ = ["Localisation", "localise", "localise_failure"]
