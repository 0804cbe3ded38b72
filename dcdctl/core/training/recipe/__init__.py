"""Recipes: the settings of an experiment, the recipes that come with the package, and a recipe as text."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
