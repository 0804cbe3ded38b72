from .choice import EngineChoice, open_engine
from .compute import ON_CPU, Compute
from .engine import Engine, Task, TaskRows, whole_shards
from .options import Embeddings, Inference, Machine
from .task_files import (
    IMAGE_BYTES,
    RESULTS,
    FilesEngine,
    TasksWrittenError,
    check_rows,
    facts_in,
    read_results,
    read_task,
    read_task_facts,
    result_path,
    write_table,
)
from .this_process import ThisProcess

__all__ = [
    "IMAGE_BYTES",
    "ON_CPU",
    "RESULTS",
    "Compute",
    "Embeddings",
    "Engine",
    "EngineChoice",
    "FilesEngine",
    "Inference",
    "Machine",
    "Task",
    "TaskRows",
    "TasksWrittenError",
    "ThisProcess",
    "check_rows",
    "facts_in",
    "open_engine",
    "read_results",
    "read_task",
    "read_task_facts",
    "result_path",
    "whole_shards",
    "write_table",
]
