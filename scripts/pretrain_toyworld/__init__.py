"""Make and grade the small world's frozen weights: ``python -m scripts.pretrain_toyworld --help``."""
