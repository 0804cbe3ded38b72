"""Who computes what is divided into shards, and with what: this process, several processes, or a cluster."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
