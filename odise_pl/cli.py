"""``odise COMMAND``: all commands of the project.

Each folder defines its own in a module ``command``, which imports nothing heavy so that ``--help`` is fast.
"""

from __future__ import annotations

import typer

from odise_pl.app import command as page
from odise_pl.checkpoints import command as checkpoints
from odise_pl.data.prepare import command as prepare
from odise_pl.errors import report_user_errors
from odise_pl.evaluation import command as evaluation
from odise_pl.export import command as export
from odise_pl.hub import command as hub
from odise_pl.prediction import command as prediction
from odise_pl.runs import command as runs
from odise_pl.toyworld import command as toyworld
from odise_pl.training import command as training

app = typer.Typer(
    help="Open-vocabulary panoptic segmentation with text-to-image diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# train.py and evaluate.py take Hydra's options
_HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=_HYDRA)(training.train)
app.command(context_settings=_HYDRA)(evaluation.evaluate)
app.command()(prediction.predict)
app.command()(page.app)
app.command()(prediction.kmeans)
app.command()(export.export)
app.add_typer(prepare.app, name="prepare")
prepare.app.command()(prediction.check)  # draws, which data may not
app.command()(prepare.captions)
app.command()(runs.report)
app.add_typer(checkpoints.app, name="checkpoint")
app.add_typer(hub.app, name="hub")
app.add_typer(hub.weights_app, name="weights")
app.command()(toyworld.demo)
app.add_typer(toyworld.app, name="toyworld")


def main() -> None:
    """Run the command; report errors that the user can fix as one message."""
    with report_user_errors():
        app()
