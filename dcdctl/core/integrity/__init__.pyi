from .copies import copy
from .verification import verify

__all__ = ["copy", "verify"]
