"""A harness that proves a hand-written layer equal to PyTorch's, or says what is wrong with it.

Nothing heavy is imported here: names are found on first use, so that ``import parity`` needs
neither torch nor pytest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__: str

# public name -> the module that defines it
_HOMES = {
    "check": "parity.checking",
    "assert_parity": "parity.checking",
    "Report": "parity.findings",
    "Finding": "parity.findings",
    "Verdict": "parity.findings",
    "Cause": "parity.findings",
    "ParityError": "parity.findings",
    "UsageError": "parity.findings",
    "check_training": "parity.training",
    "compare_predictions": "parity.statistics",
    "localise": "parity.localising",
    "Localisation": "parity.localising",
    "save_bundle": "parity.reproducing",
    "replay": "parity.reproducing",
    "script": "parity.reproducing",
    "functions": "parity.adapters.functional",
    "attributes": "parity.adapters.declared",
    "axes": "parity.adapters.wrapping",
    "one_hot_targets": "parity.adapters.wrapping",
    "preset": "parity.adapters.declared",
    "optimizer": "parity.adapters.optimizers",
    "jax": "parity.jax_adapter",
    "Case": "parity.cases",
    "Rejects": "parity.cases",
    "parametrize": "parity.parametrizing",
    "normal": "parity.specs",
    "uniform": "parity.specs",
    "integers": "parity.specs",
    "labels": "parity.specs",
    "probabilities": "parity.specs",
    "log_probabilities": "parity.specs",
    "one_hot": "parity.specs",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if name == "__version__":
        globals()[name] = value = _version()
        return value
    if home is None:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch-parity")
    except PackageNotFoundError:  # a bare checkout that nobody has installed
        return "0.0.0+checkout"


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})


if TYPE_CHECKING:
    from parity.adapters.declared import attributes as attributes
    from parity.adapters.declared import preset as preset
    from parity.adapters.functional import functions as functions
    from parity.adapters.optimizers import optimizer as optimizer
    from parity.adapters.wrapping import axes as axes
    from parity.adapters.wrapping import one_hot_targets as one_hot_targets
    from parity.cases import Case as Case
    from parity.cases import Rejects as Rejects
    from parity.checking import assert_parity as assert_parity
    from parity.checking import check as check
    from parity.findings import Cause as Cause
    from parity.findings import Finding as Finding
    from parity.findings import ParityError as ParityError
    from parity.findings import Report as Report
    from parity.findings import UsageError as UsageError
    from parity.findings import Verdict as Verdict
    from parity.jax_adapter import jax as jax
    from parity.localising import Localisation as Localisation
    from parity.localising import localise as localise
    from parity.parametrizing import parametrize as parametrize
    from parity.reproducing import replay as replay
    from parity.reproducing import save_bundle as save_bundle
    from parity.reproducing import script as script
    from parity.specs import integers as integers
    from parity.specs import labels as labels
    from parity.specs import log_probabilities as log_probabilities
    from parity.specs import normal as normal
    from parity.specs import one_hot as one_hot
    from parity.specs import probabilities as probabilities
    from parity.specs import uniform as uniform
    from parity.statistics import compare_predictions as compare_predictions
    from parity.training import check_training as check_training
