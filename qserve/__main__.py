"""``python -m qserve``: the same as ``qserve``."""

from __future__ import annotations

from qserve.cli.main import main

main()
