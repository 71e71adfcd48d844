"""Backbones: images [B, 3, H, W] in 0..1 to a pyramid of maps [B, channels, H / s, W / s], s in 4, 8, 16, 32.

The only backbone so far is a frozen diffusion model. ``diffusion_settings`` builds ``feature_backbone``,
which cuts windows (``sliding_window``), computes the conditioning (``captioners``), reads feature maps
("taps") of the frozen network (``latent_diffusion``) and projects them (``pyramid``).

To add a backbone, add a module with a feature extractor, which lists its taps (channels and strides) and
returns their maps, and a settings dataclass with ``channels`` and ``build(clip, captioner, mapped)``. Set the
dataclass as ``_target_`` in a file of ``conf/backbone``, and add it to ``TARGETS`` in
``checkpoints/description.py``.
"""
