"""Arguments that several jobs share: one name, one help text (`core/arguments.py`)."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from dcdctl.core.arguments import MOST_WORKERS, Ref, Settings, argument, computes, configures, reads

# Texts of arguments whose type differs between jobs.
DEPTH_HELP = "Candidates to re-rank per query."
TEACHER_HELP = (
    "Name (dcdctl models), Hub id, transformers folder, official .ckpt, run folder, or module:function "
    "(code that runs)."
)
BATCH_SIZE_HELP = "Images or pairs in a forward pass."

# What a job reads
Data = Annotated[Ref, reads("--data", "Folder written by `dcdctl prepare`.", "DIR", "place")]
reads_split = partial(reads, "--split", "Split; train+val reads both.", "NAME", "split")
Split = Annotated[str, reads_split()]
MaxImages = Annotated[int | None, reads("--max-images", "Use only the first N images of a split.", "N", min=1)]
model_argument = argument("Run folder, or another model reference.", "RUN", "model")
ModelRef = Annotated[Ref, model_argument]
Teacher = Annotated[Ref, reads("--teacher", TEACHER_HELP, "REF", "model")]
Rerank = Annotated[
    Ref | None,
    reads(
        "--rerank",
        "Model that re-ranks the first candidates: any run, or module:function (code that runs).",
        "REF",
        "model",
    ),
]
QueryRef = Annotated[
    Ref | None,
    reads("--query-model", "Query encoder that embeds texts in the model's place.", "REF", "query model"),
]
RerankSet = Annotated[
    Settings | None,
    configures("--rerank-set", "With --rerank: what its files lack: dtype=bfloat16; repeatable.", "NAME=VALUE"),
]
Features = Annotated[
    Ref | None,
    computes("--features", "Folder that keeps the outputs of frozen encoders.", "DIR"),
]

# Settings
Dims = Annotated[int | None, configures("--dims", "Use only the first N numbers of each vector.", "N", min=1)]
Sets = Annotated[
    list[str] | None,
    configures(
        "--set",
        "Override a recipe field (`dcdctl recipes NAME --all`): loss.alpha=0.5; repeatable.",
        "KEY=VALUE",
        is_keyword=False,
    ),
]
ModelSet = Annotated[
    Settings | None,
    configures("--model-set", "What model files lack: image_size=384; repeatable.", "NAME=VALUE"),
]

# Where and how to compute
Device = Annotated[
    str,
    computes("--device", "auto (the GPU if there is one), cpu, cuda, cuda:1 or mps.", "NAME", "device"),
]
Precision = Annotated[str, computes("--precision", "fp32, bf16 or fp16.", "NAME", "precision")]
BatchSize = Annotated[int, computes("--batch-size", BATCH_SIZE_HELP, "N", min=1)]
PairBatchSize = Annotated[int | None, computes("--batch-size", BATCH_SIZE_HELP, "N", show_default="the model's", min=1)]
Workers = Annotated[
    int | None,
    computes(
        "--workers",
        "Threads that read images ahead.",
        "N",
        show_default="one per core but one, at most 8",
        min=0,
        max=MOST_WORKERS,
    ),
]
Engine = Annotated[
    str | None,
    computes(
        "--engine",
        "Compute by processes:4, files:DIR, ray, ray://HOST:PORT or 'ray?workers=4&gpus=0.5&cpus=2' (extra ray).",
        "NAME",
        "engine",
    ),
]

# Where it goes
Out = Annotated[Ref, configures("--out -o", "Folder to write.", "DIR", "output folder")]
NewOut = Annotated[Ref, configures("--out -o", "New folder to write.", "DIR")]
Page = Annotated[Ref | None, configures("--html", "Also write a page with the images.", "FILE", "output file")]
