"""Whether a teacher pays on the user's data: zero-shot, fine-tuned, distilled and a cascade, in one report."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
