from .verification import verify

__all__ = ["verify"]
