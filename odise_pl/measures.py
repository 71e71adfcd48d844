"""What can be measured on a data set. Imports nothing."""

from __future__ import annotations

# Panoptic quality, mask AP, mean IoU. Semantic label maps allow the last alone, annotated objects the second.
MEASURES = ("panoptic", "instances", "semantic")
