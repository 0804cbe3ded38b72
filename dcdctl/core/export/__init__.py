"""A model as others read it: transformers, sentence-transformers, ONNX, the Hub."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
