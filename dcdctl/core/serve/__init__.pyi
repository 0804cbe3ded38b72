from .config import ServiceConfig
from .server import serve

__all__ = [
    "ServiceConfig",
    "serve",
]
