from .config import ServiceConfig
from .job import Job
from .server import Started, serve

__all__ = ["Job", "ServiceConfig", "Started", "serve"]
