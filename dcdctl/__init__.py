"""Dynamic Contrastive Distillation for image-text retrieval.

The functions and classes behind the commands, for notebooks and programs (docs/python.md). They are imported on
first use, so `import dcdctl` loads no torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
