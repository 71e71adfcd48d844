"""Evaluate: ``python evaluate.py ckpt=PATH [data=NAME] [KEY=VALUE] ...`` prints and saves the results."""

from odise_pl.evaluation.run import main

if __name__ == "__main__":
    main()
