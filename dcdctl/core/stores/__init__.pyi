from .protocol import StoreFacts
from .retry import UnavailableError
from .store_index import StoreIndex, store_document, store_facts
from .upload import Upload, upload_index
from .url import is_store, location_of, open_index, open_store

__all__ = [
    "StoreFacts",
    "StoreIndex",
    "UnavailableError",
    "Upload",
    "is_store",
    "location_of",
    "open_index",
    "open_store",
    "store_document",
    "store_facts",
    "upload_index",
]
