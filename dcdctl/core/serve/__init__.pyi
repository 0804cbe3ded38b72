from .config import ServiceConfig
from .job import Models
from .server import Started, serve

__all__ = [
    "Models",
    "ServiceConfig",
    "Started",
    "serve",
]
