from .captions import text_key, tokens_of
from .columns import MOMENT, ImageColumns, columns_of_table, moment_of, read_columns
from .corpus import Corpus, Direction, group_captions
from .corpus_json import (
    CORPUS,
    CORPUS_FILE,
    CorpusDocument,
    all_splits,
    manifests_folder,
    prepare_command,
    read_corpus_json,
    share_split,
    split_to_measure,
)
from .corpus_summary import (
    MAX_WORDS_COUNTED,
    CorpusInspection,
    artifact_kind,
    corpus_facts,
    corpus_table,
    summarize_corpus,
)
from .download.cache import RemoteFile, fetch_file
from .download.hub import hub_connection, hub_refusal, hub_requests
from .images import (
    CAMERA_COLUMNS,
    MAX_PIXELS,
    PLACE_COLUMNS,
    FolderImageFile,
    ImageError,
    RowError,
    decode_image,
    difference_hash,
    media_type,
    read_exif,
    thumbnail,
    upright_rgb,
)
from .manifest import DataChoice, choose_manifest, counted_corpus, find_manifest, list_data_sets
from .near_duplicates import NEAR_BITS
from .prepare import CorpusSummary, prepare_corpus
from .ragged_array import Flags, Indices, RaggedArray, Scores, Values, offsets_of
from .readers.pool import LANGUAGE, TEXT_SUFFIXES, check_text, read_values
from .scenes import describe_scenes, draw_scene
from .shard_reader import StreamSample
from .source_files import SourceOptions
from .split_writer import PrepareOptions
from .stream import ShardCount, ShardStream, StreamConfig, is_stream, open_shards

__all__ = [
    "CAMERA_COLUMNS",
    "CORPUS",
    "CORPUS_FILE",
    "LANGUAGE",
    "MAX_PIXELS",
    "MAX_WORDS_COUNTED",
    "MOMENT",
    "NEAR_BITS",
    "PLACE_COLUMNS",
    "TEXT_SUFFIXES",
    "Corpus",
    "CorpusDocument",
    "CorpusInspection",
    "CorpusSummary",
    "DataChoice",
    "Direction",
    "Flags",
    "FolderImageFile",
    "ImageColumns",
    "ImageError",
    "Indices",
    "PrepareOptions",
    "RaggedArray",
    "RemoteFile",
    "RowError",
    "Scores",
    "ShardCount",
    "ShardStream",
    "SourceOptions",
    "StreamConfig",
    "StreamSample",
    "Values",
    "all_splits",
    "artifact_kind",
    "check_text",
    "choose_manifest",
    "columns_of_table",
    "corpus_facts",
    "corpus_table",
    "counted_corpus",
    "decode_image",
    "describe_scenes",
    "difference_hash",
    "draw_scene",
    "fetch_file",
    "find_manifest",
    "group_captions",
    "hub_connection",
    "hub_refusal",
    "hub_requests",
    "is_stream",
    "list_data_sets",
    "manifests_folder",
    "media_type",
    "moment_of",
    "offsets_of",
    "open_shards",
    "prepare_command",
    "prepare_corpus",
    "read_columns",
    "read_corpus_json",
    "read_exif",
    "read_values",
    "share_split",
    "split_to_measure",
    "summarize_corpus",
    "text_key",
    "thumbnail",
    "tokens_of",
    "upright_rgb",
]
