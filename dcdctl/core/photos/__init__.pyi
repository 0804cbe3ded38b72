from .job import DEFAULT_MODEL, PhotosJob
from .make import make_library

__all__ = ["DEFAULT_MODEL", "PhotosJob", "make_library"]
