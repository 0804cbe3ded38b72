from .job import Job
from .server import Started, serve
from .service_config import ServiceConfig

__all__ = ["Job", "ServiceConfig", "Started", "serve"]
