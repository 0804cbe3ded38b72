"""Files are written atomically, by one process at a time, and a file that cannot be used is an error that says
why."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
