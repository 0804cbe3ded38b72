"""From captioned images to a trained student: `prepare`, `load`, `load_recipe`, `cache_teacher`, `work`,
`finetune_teacher`, `distill` and `study`; and `photos`, from a folder of photos to an index."""

from __future__ import annotations

import os

from dcdctl.api import arguments as api
from dcdctl.api.arguments import say, takes
from dcdctl.api.search import Index
from dcdctl.core import data, devices, models, training
from dcdctl.core.arguments import Overrides, Ref, named
from dcdctl.core.data import CorpusSummary, PrepareJob, WorkDone
from dcdctl.core.errors import ModelError
from dcdctl.core.models import Model
from dcdctl.core.photos import PhotosJob, make_library
from dcdctl.core.report import Study
from dcdctl.core.search import WorkJob, do_work
from dcdctl.core.study import StudyJob, StudyView, run_study
from dcdctl.core.teacher import TeacherCache, cache_scores
from dcdctl.core.toml import assignments
from dcdctl.core.training import CacheTeacher, Distill, FinetuneTeacher, Recipe, Run, TrainingRun


@takes(PrepareJob)
def prepare(job: PrepareJob) -> CorpusSummary:
    """Turn captioned images into a corpus in `out`, by default data/NAME: downloaded, checked, sharded and
    fingerprinted.

    `manifest` is a name such as "flickr30k" or "scenes", or a .toml file. Without one, `csv`, `jsonl` or `karpathy`
    names the captions and `images` the folders or archives. Does nothing if the corpus is finished, and resumes an
    interrupted one.
    """
    return data.make_corpus(job, track=api.track(job.progress), say=say)


def load(
    ref: Ref,
    overrides: Overrides | None = None,
    *,
    query_model: Ref | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Model:
    """A model in eval mode: a dual encoder, a late-interaction model or a fusion scorer (`models.model`). Its `score`
    gives the logits of images with texts.

    `ref` is a run, a folder or Hub id of a family that loads, an official .ckpt, a built-in or published name, or
    module:function. `query_model` is a query encoder of the model, which reads the texts then.
    """
    model = models.load(os.fspath(ref), overrides, api.track(progress))
    if query_model is not None:
        if model.kind == "fusion":
            raise ModelError(f"{os.fspath(ref)} scores pairs, and a query encoder has vectors of texts")
        model = models.with_queries(model, os.fspath(query_model))
    return model.to(devices.choose(device))


def load_recipe(ref: Ref | Recipe, overrides: Overrides | None = None) -> Recipe:
    """A recipe by name, from a .toml file or in memory, with fields overridden: {"optimizer.steps": 20}.

    ConfigError for an unknown name, field or value.
    """
    return training.load_recipe(named(ref), assignments(overrides))


@takes(CacheTeacher)
def cache_teacher(request: CacheTeacher) -> TeacherCache:
    """Score each query's candidates with the teacher, once. `recipe` is the student's, whose `candidates` say what is
    scored. With `engine="files:DIR"`, TasksWrittenError says that `work` is next."""
    return cache_scores(request.settle(say), track=api.track(request.progress))


@takes(WorkJob)
def work(job: WorkJob) -> WorkDone:
    """Do tasks that `engine="files:DIR"` wrote: score pairs, or embed images. The call that wrote them, made again,
    takes the results.

    `files` is a file, a folder or a pattern, or several. Each task gets a file of results beside it, unless that is
    there. `model` is the place of the model on this machine, if it is another one.
    """
    return do_work(job, track=api.track(job.progress), say=say)


@takes(Distill)
def distill(request: Distill) -> Run:
    """Train a student on a teacher's scores: those of a cache, or of a dual encoder named by `teacher`, which needs
    none.

    `data` is a corpus, or tars and Parquet files to stream. `out` is the run folder; `resume` resumes the run in it.
    """
    return _train(request)


@takes(FinetuneTeacher)
def finetune_teacher(request: FinetuneTeacher) -> Run:
    """Train a cross-encoder to rank captions and images; it starts from `teacher`, or from the recipe's
    `model.start`."""
    return _train(request)


@takes(StudyJob)
def study(job: StudyJob) -> Study:
    """Find out whether a teacher pays on this data: zero-shot, fine-tuned, distilled and a cascade, with one report in
    `out`."""
    view = StudyView(say=say, track=api.track(job.progress), watch=api.watch(job.progress))
    return run_study(job, view)


@takes(PhotosJob)
def photos(job: PhotosJob) -> Index:
    """Make a folder of photos searchable: the index in the folder `index` of `out`.

    A pretrained `model` indexes them. `captions`, or `queries` and a `teacher`, train a model first. The same call
    again follows the folder: it adds what is new and removes what is gone.
    """
    make_library(job, track=api.track(job.progress), watch=api.watch(job.progress), say=say)
    return Index.open(job.library.index)


def _train(request: TrainingRun) -> Run:
    progress = request.progress
    return training.run_training(request, track=api.track(progress), watch=api.watch(progress), say=say).run
