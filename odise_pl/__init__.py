"""Open-vocabulary panoptic segmentation with text-to-image diffusion models (arXiv 2303.04803)."""

__version__ = "0.1.0"
