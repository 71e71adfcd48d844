"""``python -m odise_pl.data.prepare``."""

from odise_pl.data.prepare.command import main

if __name__ == "__main__":
    raise SystemExit(main())
