"""Backbones: images [B, 3, H, W] in 0..1 to a pyramid of maps [B, channels, H / s, W / s], s in 4, 8, 16, 32.

The one backbone so far reads a frozen diffusion model. ``diffusion_settings`` builds ``feature_backbone``,
which cuts windows (``sliding_window``), asks a captioner for the conditioning (``captioners``), reads feature
maps ("taps") of the frozen network (``latent_diffusion``) and projects them (``pyramid``).

Another backbone is another module here: a feature extractor that lists its taps with channels and strides and
returns their maps, and a settings dataclass with ``channels`` and ``build(clip, captioner, mapped)``. A file
in ``conf/backbone`` names the dataclass as its ``_target_``, and ``checkpoints/description.py`` lists it
among the targets that a checkpoint may choose.
"""
