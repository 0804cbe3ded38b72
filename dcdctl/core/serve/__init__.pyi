from .config import ServiceConfig, build_config
from .server import Models, Started, serve

__all__ = [
    "Models",
    "ServiceConfig",
    "Started",
    "build_config",
    "serve",
]
