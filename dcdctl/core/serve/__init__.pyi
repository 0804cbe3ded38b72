from .config import ServiceConfig, build_config
from .server import serve

__all__ = [
    "ServiceConfig",
    "build_config",
    "serve",
]
