"""Indexed images in the stores of other programs, filled from an index and searched in its place."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
