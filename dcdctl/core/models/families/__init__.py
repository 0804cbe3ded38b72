"""The model families: each file loads one, and subclasses `FusionScorer` or `DualEncoder` for it."""
