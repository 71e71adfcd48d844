"""``python -m odise_pl``: the same as ``odise``."""

from odise_pl.cli import main

main()
