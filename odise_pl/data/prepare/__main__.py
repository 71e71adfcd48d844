"""``python -m odise_pl.data.prepare``: ``odise prepare`` without ``check``, which draws."""

from odise_pl.data.prepare.command import app
from odise_pl.errors import report_user_errors

with report_user_errors():
    app()
