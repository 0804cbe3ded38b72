from .config import ServiceConfig, build_config
from .server import Started, serve

__all__ = [
    "ServiceConfig",
    "Started",
    "build_config",
    "serve",
]
