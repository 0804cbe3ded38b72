from .protocol import StoreFacts
from .retry import UnavailableError
from .store_index import StoreIndex
from .upload import Upload, upload_index
from .url import is_store, open_index, open_store

__all__ = [
    "StoreFacts",
    "StoreIndex",
    "UnavailableError",
    "Upload",
    "is_store",
    "open_index",
    "open_store",
    "upload_index",
]
