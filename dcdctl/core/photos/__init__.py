"""From a folder of photos to an index, by the steps of the other commands: a corpus, a student, an index. The same call
again follows the folder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
