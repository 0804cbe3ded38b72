from .protocol import Store, StoreFacts
from .retry import UnavailableError
from .store_index import StoreIndex
from .upload import Upload, check_store, upload_index
from .url import is_store, open_index, open_store

__all__ = [
    "Store",
    "StoreFacts",
    "StoreIndex",
    "UnavailableError",
    "Upload",
    "check_store",
    "is_store",
    "open_index",
    "open_store",
    "upload_index",
]
