"""Train: ``python train.py [GROUP=CHOICE] [KEY=VALUE] ...``; the defaults are the published COCO run."""

from odise_pl.training.run import main

if __name__ == "__main__":
    main()
