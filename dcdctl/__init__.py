"""Dynamic Contrastive Distillation for image-text retrieval.

The functions and classes behind the commands, for notebooks and programs (docs/python.md). They are imported on
first use, so `import dcdctl` loads no torch.
"""

import os
import sys

import lazy_loader

__version__ = "0.1.0"

SPINS = "1000"
"""How often a thread of torch that waits looks for work before it sleeps: some 10 microseconds. libgomp's own 300,000
keep a core from other programs for 3 milliseconds each time (docs/evidence/performance.md)."""
# Every command, worker and program imports this file first, and libgomp reads the variable once, when torch loads it.
# Children inherit it. What the user has set stays.
if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPINS

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """A function or class by its name; AttributeError that names the nearest one."""
    # Names with an underscore are what other programs look for, such as notebooks.
    if name not in __all__ and not name.startswith("_"):
        from difflib import get_close_matches

        near = get_close_matches(name, __all__, n=1)
        # No question, because Python adds one of its own where it shows a traceback.
        what = f", but {near[0]}" if near else f"; it has {', '.join(sorted(__all__))}"
        raise AttributeError(f"dcdctl has no {name}{what}")
    return _load(name)
