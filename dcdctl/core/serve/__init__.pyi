from .config import ServiceConfig, build_config
from .job import Models
from .server import Started, serve

__all__ = [
    "Models",
    "ServiceConfig",
    "Started",
    "build_config",
    "serve",
]
