from .captions import text_key, tokens_of
from .corpus import CORPUS, CORPUS_FILE, Corpus, Direction, all_splits, find_faults, read_corpus_json, share_split, split_to_measure
from .corpus_summary import (
    MAX_WORDS_COUNTED,
    CorpusInspection,
    artifact_kind,
    corpus_document,
    corpus_facts,
    corpus_table,
    summarize_corpus,
)
from .download.cache import RemoteFile, fetch_file
from .download.hub import hub_connection, hub_requests
from .image_archives import FolderImageFile, RowError
from .images import MAX_PIXELS, ImageError, decode_image, difference_hash, media_type, thumbnail, upright_rgb
from .manifest import TEXT_FIELDS, FileSettings, Manifest, choose_manifest, find_manifest, known_manifests, manifests_folder
from .prepare import CorpusSummary, PrepareOptions, prepare_corpus
from .ragged_array import Index, RaggedArray, offsets_of
from .scenes import COLORS, FAMILY_SIZE, GRID, SHAPES, SIZES, Scene, describe_family, describe_scenes, draw_scene
from .source_files import SourceOptions
from .stream import ShardCount, ShardStream, StreamBatch, StreamConfig, is_stream, open_shards

__all__ = [
    "COLORS",
    "CORPUS",
    "CORPUS_FILE",
    "FAMILY_SIZE",
    "GRID",
    "MAX_PIXELS",
    "MAX_WORDS_COUNTED",
    "SHAPES",
    "SIZES",
    "TEXT_FIELDS",
    "Corpus",
    "CorpusInspection",
    "CorpusSummary",
    "Direction",
    "FileSettings",
    "FolderImageFile",
    "ImageError",
    "Index",
    "Manifest",
    "PrepareOptions",
    "RaggedArray",
    "RemoteFile",
    "RowError",
    "Scene",
    "ShardCount",
    "ShardStream",
    "SourceOptions",
    "StreamBatch",
    "StreamConfig",
    "all_splits",
    "artifact_kind",
    "choose_manifest",
    "corpus_document",
    "corpus_facts",
    "corpus_table",
    "decode_image",
    "describe_family",
    "describe_scenes",
    "difference_hash",
    "draw_scene",
    "fetch_file",
    "find_faults",
    "find_manifest",
    "hub_connection",
    "hub_requests",
    "is_stream",
    "known_manifests",
    "manifests_folder",
    "media_type",
    "offsets_of",
    "open_shards",
    "prepare_corpus",
    "read_corpus_json",
    "share_split",
    "split_to_measure",
    "summarize_corpus",
    "text_key",
    "thumbnail",
    "tokens_of",
    "upright_rgb",
]
