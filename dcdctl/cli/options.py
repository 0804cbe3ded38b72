"""Options that several commands share: a name, a sentence and a check, written once.

Typer reads the options of a command off its signature, so each command lists those it has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Option("--data", help="Folder written by `dcdctl prepare`.", metavar="DIR")]
Split = Annotated[str, typer.Option("--split", help="Split of the corpus.", metavar="NAME")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", metavar="DIR")]
Teacher = Annotated[
    str, typer.Option("--teacher", help="Name (prepare --list), Hub id, transformers folder, released .ckpt or run folder.", metavar="REF")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Device = Annotated[str, typer.Option("--device", help="auto (the GPU where there is one), cpu, cuda, cuda:1, mps.", metavar="NAME")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads for torch; as many as torch finds if not given.", min=1)]
Precision = Annotated[str, typer.Option("--precision", help="fp32; bf16 or fp16 where the hardware has it.", metavar="NAME")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from where a stopped run left off.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe field: loss.alpha=0.5; repeatable.", metavar="KEY=VALUE")]
ModelSet = Annotated[
    list[str] | None,
    typer.Option("--model-set", help="Set what a model file does not say: image_size=384; repeatable.", metavar="KEY=VALUE"),
]
Features = Annotated[
    Path | None,
    typer.Option("--features", help="Folder that keeps the outputs of encoders that are not trained; made where absent.", metavar="DIR"),
]
MaxImages = Annotated[int | None, typer.Option("--max-images", help="Only the first N images of the split.", min=1, metavar="N")]
Workers = Annotated[int, typer.Option("--workers", help="Processes that read batches ahead.", min=0)]
Accumulate = Annotated[
    int,
    typer.Option("--accumulate", help="Compute a batch in N parts, for less memory; its loss is of the whole.", min=1, metavar="N"),
]
CheckpointActivations = Annotated[
    bool,
    typer.Option("--checkpoint-activations", help="Compute activations twice instead of keeping them: less memory, more time."),
]
Wandb = Annotated[
    str | None, typer.Option("--wandb", help="Project at Weights & Biases that is told the numbers too (extra wandb).", metavar="PROJECT")
]
