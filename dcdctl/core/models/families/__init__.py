"""The model families: each file loads one, and subclasses `FusionModel` or `DualModel` for it."""
