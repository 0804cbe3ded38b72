from .archives import (
    TAR_BLOCK_BYTES,
    FolderImageFile,
    ImageFile,
    ImageStore,
    RowError,
    is_macos_metadata,
    reject_large_file,
    why_refused,
)
from .decode import (
    MAX_PIXELS,
    CheckedImage,
    ImageError,
    check_image,
    decode_image,
    difference_hash,
    media_type,
    thumbnail,
    upright_rgb,
)
from .exif import CAMERA_COLUMNS, PLACE_COLUMNS, read_exif
from .parquet import PARQUET_BATCH_ROWS, PARQUET_BUFFER_BYTES, ParquetImageFile, refuse_inflation
from .workers import CHUNK_IMAGES, CheckImages, image_pool

__all__ = [
    "CAMERA_COLUMNS",
    "CHUNK_IMAGES",
    "MAX_PIXELS",
    "PARQUET_BATCH_ROWS",
    "PARQUET_BUFFER_BYTES",
    "PLACE_COLUMNS",
    "TAR_BLOCK_BYTES",
    "CheckImages",
    "CheckedImage",
    "FolderImageFile",
    "ImageError",
    "ImageFile",
    "ImageStore",
    "ParquetImageFile",
    "RowError",
    "check_image",
    "decode_image",
    "difference_hash",
    "image_pool",
    "is_macos_metadata",
    "media_type",
    "read_exif",
    "refuse_inflation",
    "reject_large_file",
    "thumbnail",
    "upright_rgb",
    "why_refused",
]
