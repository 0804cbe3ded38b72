from .access import check_exists, check_output_file, check_output_folder, unreadable, user_errors
from .atomic import PARTIAL_SUFFIX, atomic_folder, atomic_path, remove_partials, sync, write_text
from .contents import digest_of, map_arrays, parse_json, read_json, sha256_of, write_json
from .locks import lock, lock_prefix
from .paths import (
    MAX_NAME_BYTES,
    escapes_root,
    files_below,
    find_named,
    is_file_name,
    is_vacant,
    names_in,
    packaged,
    to_file_name,
    walk,
)

__all__ = [
    "MAX_NAME_BYTES",
    "PARTIAL_SUFFIX",
    "atomic_folder",
    "atomic_path",
    "check_exists",
    "check_output_file",
    "check_output_folder",
    "digest_of",
    "escapes_root",
    "files_below",
    "find_named",
    "is_file_name",
    "is_vacant",
    "lock",
    "lock_prefix",
    "map_arrays",
    "names_in",
    "packaged",
    "parse_json",
    "read_json",
    "remove_partials",
    "sha256_of",
    "sync",
    "to_file_name",
    "unreadable",
    "user_errors",
    "walk",
    "write_json",
    "write_text",
]
