"""``python -m parity``, the same as the command ``parity``."""

import sys

from parity.interrupts import at_once

if __name__ == "__main__":
    with at_once():
        from parity.cli import main
    sys.exit(main())
