"""Holding the network against recorded numbers of the published model: ``python -m odise_pl.parity DIR``."""
