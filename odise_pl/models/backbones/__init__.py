"""Backbones: images [B, 3, H, W] in 0..1 to a pyramid of maps [B, channels, H / s, W / s], s in 4, 8, 16, 32.

``feature_backbone`` cuts windows (``sliding_window``), asks for the conditioning (``captioners``), reads
feature maps ("taps") of a frozen network and projects them (``pyramid``). ``contract`` says what a network
has to offer; the latent diffusion model (``latent_diffusion``, built by ``diffusion_settings``) is one.
"""
