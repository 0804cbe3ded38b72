"""Load, save, embed and score: every model is a dual encoder, or scores pairs by fusion or by late interaction."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
