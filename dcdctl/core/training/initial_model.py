"""The initial model of a training: the recipe's model with its first weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from dcdctl.core import models
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.models import DualEncoder, FeatureSpec, FusionScorer, Model, Preprocessor, TrainedParts
from dcdctl.core.progress import Say, Track, silent
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.recipe import (
    DualConfig,
    FusionConfig,
    ImageTextConfig,
    LateConfig,
    ModelConfig,
    QueryConfig,
    Recipe,
    TwoTowerConfig,
)

Start = Model | models.QuerySpace | None
"""What a student starts from: its teacher of pairs; of a query encoder the model whose vectors it learns, or that
model's space alone; or nothing."""


def check(recipe: Recipe, *, has_teacher: bool) -> None:
    """ModelError if a recipe's model starts from its teacher and there is none, or from a reference that names
    nothing."""
    config = recipe.model
    if config.starts_from_teacher and not has_teacher:
        raise ModelError("this model starts from its teacher, and no teacher is given", hint="name it with --teacher")
    # A fusion model whose teacher is given starts from that one, so its start is not looked up.
    is_replaced = has_teacher and isinstance(config, FusionConfig)
    if config.start not in ("teacher", "new") and not is_replaced:
        models.check_ref(config.start, kind=config.start_kind)
        if models.is_function(config.start):
            raise ModelError(
                f"model.start {config.start} is a Python function, which is not trained",
                hint="give it to --teacher, or to `dcdctl cache-teacher`, and start from a model",
            )
    if isinstance(config, DualConfig) and config.start == "new":
        check_dims(recipe.loss, config.projection_dim)
    if isinstance(config, TwoTowerConfig) and config.trained == "lora":
        models.require_peft()
    if isinstance(config, FusionConfig) and config.dual_init:
        models.check_ref(config.dual_init, kind="dual")


def make_model(recipe: Recipe, captions: Sequence[str], teacher: Start, track: Track = silent) -> Model:
    """The model that a recipe trains, with its first weights, downloaded if necessary. The teacher is copied, not
    changed."""
    match recipe.model:
        case FusionConfig() as config:
            assert not isinstance(teacher, models.QuerySpace)
            return _make_fusion(recipe, config, captions, teacher, track)
        case QueryConfig() as config:
            return _make_query(recipe, config, captions, teacher)
        case LateConfig() as config:
            return _make_late(recipe, config, captions, track)
        case DualConfig(has_teacher_texts=True) as config:
            return _make_image_student(recipe, config, teacher)
        case DualConfig() as config:
            return _make_dual(recipe, config, captions, track)


def load_start(
    recipe: Recipe, captions: Sequence[str], teacher: Start, vector_width: int | None, say: Say, track: Track
) -> Model:
    """The initial model of a training, which is trained in place; with `vector_width`, also projected to vectors of a
    teacher. `say` gets what the captions lack."""
    model = make_model(recipe, captions, teacher, track)
    check_loss(recipe.loss, model)
    if trains_frozen_encoders(recipe.model, model):
        say(
            f"the encoders of {recipe.model.start} are trained too (model.trained is all), which takes far longer than "
            "its projections; --set model.trained=projections keeps them frozen"
        )
    for line in caption_notes(captions, model.preprocess):
        say(line)
    if vector_width is not None:
        assert model.as_dual is not None
        model.as_dual.add_projection(vector_width)
    return model


def trains_frozen_encoders(config: ModelConfig, model: Model) -> bool:
    """Whether a training changes the encoders of a start that was made over frozen ones, such as a run of `photos`."""
    is_asked = isinstance(config, TwoTowerConfig) and config.start != "new" and config.trained == "all"
    return is_asked and model.encoders is not None and not model.encoders.is_frozen


def _make_fusion(
    recipe: Recipe, config: FusionConfig, captions: Sequence[str], teacher: Model | None, track: Track
) -> FusionScorer:
    check(recipe, has_teacher=teacher is not None)
    if teacher is None and config.start == "new":
        teacher = _new_fusion(config, captions, recipe.seed)
    elif teacher is None:
        teacher = models.load_fusion(config.start, track=track)
    if teacher.kind != "fusion":
        raise teacher.without_student()
    # A copy, to average with the teacher. A scorer without fusion layers says why it has no student.
    is_chosen = config.layers or not teacher.num_layers
    model = teacher.student(config.layers) if is_chosen else copy.deepcopy(teacher).requires_grad_(True)
    if config.frozen_encoders:
        if model.encoders is None:
            raise ConfigError("model.frozen_encoders is set, and the model has no separate encoders")
        model.encoders.freeze()
    if config.dropout is not None:
        model.set_dropout(config.dropout)
    return model


def _make_dual(recipe: Recipe, config: TwoTowerConfig, captions: Sequence[str], track: Track) -> Model:
    """A dual encoder; or, for a late-interaction student, whatever `start` names."""
    if config.start == "new":
        model: Model = _new_dual(recipe, config, captions)
    else:
        model = models.load(config.start, track=track, kind=config.start_kind)
    dual = model.as_dual
    if dual is None:
        raise model.not_trained()
    dual.keep_layers(config.vision_layers, config.text_layers)
    # Its texts are trained too, so it leaves the space that it was made for.
    dual.space_of = None
    if config.dropout is not None:
        model.set_dropout(config.dropout)
    if config.frozen_encoders:
        return model  # made so
    # After the dropout, whose setting copies the network: an adapted one has other modules.
    dual.set_trained(_trained_parts(recipe, config))
    return model


def _trained_parts(recipe: Recipe, config: TwoTowerConfig) -> TrainedParts:
    return TrainedParts(
        which=config.trained,
        num_layers=config.trained_layers or 0,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        seed=recipe.seed,
    )


def _make_image_student(recipe: Recipe, config: DualConfig, teacher: Start) -> DualEncoder:
    """A dual encoder whose images are learned and whose texts are the teacher's, unchanged."""
    assert isinstance(teacher, DualEncoder)
    student = models.new_image_student(config.vision, teacher, features=_feature_spec(config), seed=recipe.seed)
    student.set_dropout(config.dropout or 0.0)
    if not config.frozen_encoders:
        student.set_trained(_trained_parts(recipe, config))
    return student


def _make_late(recipe: Recipe, config: LateConfig, captions: Sequence[str], track: Track) -> Model:
    model = _make_dual(recipe, config, captions, track)
    if model.kind == "late":
        _check_late_start(config)
        return model
    assert model.as_dual is not None
    return models.new_late(
        model.as_dual,
        config.token_dim,
        is_pooled=config.pooled,
        position_norm=config.position_norm,
        token_pooling=config.token_pooling,
        seed=recipe.seed,
    )


def _check_late_start(config: LateConfig) -> None:
    """ConfigError for a setting of new token vectors: a late-interaction start has its own."""
    default = LateConfig()
    for name in LateConfig.OWN:
        if getattr(config, name) != getattr(default, name):
            raise ConfigError(
                f"model.{name} is for a start without token vectors, and {config.start} is a late-interaction model",
                hint="leave it out, or start from a dual encoder",
            )


def _make_query(recipe: Recipe, config: QueryConfig, captions: Sequence[str], of: Start) -> Any:
    """A query encoder for a space, or joined with the teacher that has it."""
    teacher: models.Searchable | None = None
    if isinstance(of, models.QuerySpace):
        space = of
    else:
        assert of is not None
        assert of.kind != "fusion"
        teacher, space = of, models.QuerySpace.of(of)
    query: Any
    if config.start == "new":
        size = models.QuerySize(
            text=config.text,
            layers=config.text_layers,
            num_layers=config.num_text_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            # In late interaction, a text has the tokens that the teacher gives it.
            max_text_len=teacher.preprocess.max_text_len if teacher and space.has_tokens else config.max_text_len,
        )
        tokenizer = None if config.text else models.word_piece(captions, config.vocab_size)
        query = models.new_query(space, size, tokenizer=tokenizer, teacher=teacher, seed=recipe.seed)
    else:
        query = models.load(config.start, kind="query")
        query.space.check(space, config.start)
    if config.dropout is not None:
        query.set_dropout(config.dropout)
    return query if teacher is None else query.join(teacher)


def caption_notes(captions: Sequence[str], preprocess: Preprocessor) -> Iterator[str]:
    """A line for each fault that more than a tenth of the captions have, of at most 2,000: a text encoder that cuts
    them or does not know their words learns little from them, and equal ones tell no images apart."""
    some = captions[:: len(captions) // 2000 + 1]
    tokenizer, most = preprocess.tokenizer, preprocess.max_text_len
    tokens = [tokenizer(text, verbose=False)["input_ids"] for text in some]
    # Some tokenizers end each text with the token that stands for unknown words.
    unknown = tokenizer.unk_token_id
    unknown_in_all = tokenizer("", verbose=False)["input_ids"].count(unknown)
    num_cut = sum(0 < most < len(ids) for ids in tokens)
    num_unknown = sum(ids.count(unknown) > unknown_in_all for ids in tokens)
    faults = {
        f"are cut to {most} word pieces (model.max_text_len)": num_cut,
        "have words that the text encoder does not know": num_unknown,
        "repeat another one": len(some) - len(set(some)),
    }
    for fault, count in faults.items():
        if 10 * count > len(some):
            yield f"{count:,} of {len(some):,} captions {fault}"


def check_loss(loss: LossConfig, model: Model) -> None:
    """ConfigError if a width of `loss.dims` is above the width of the model's vectors, if these are of tokens, or if a
    term needs a bias that the model lacks."""
    if loss.dims and model.kind == "late":
        raise ConfigError("loss.dims is for a vector per text, and this teacher has one per token", hint="leave it out")
    if model.has_one_vector:
        check_dims(loss, model.embedding_dim)
    # The head of a fusion model has a bias of its own, and MaxSim has none.
    has_bias = model.logit_bias is not None if model.has_one_vector else model.kind == "fusion"
    if loss.needs_bias and not has_bias:
        raise ConfigError(
            f"loss.terms has {', '.join(loss.terms)}, and the logits of this {model.kind} model have no bias",
            hint="start from a SigLIP or from new, or take infonce and kl",
        )


def check_dims(loss: LossConfig, width: int) -> None:
    """ConfigError if a width of `loss.dims` is above that of the model's vectors."""
    if loss.dims and loss.dims[-1] > width:
        raise ConfigError(
            f"loss.dims ends with {loss.dims[-1]}, and the vectors of the model have {width} numbers",
            hint=f"end it with {width}, the full width",
        )


def _new_fusion(config: FusionConfig, captions: Sequence[str], seed: int) -> FusionScorer:
    if config.vision:
        fusion = models.FusionSize(
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout=config.dropout or 0.0,
        )
        return models.new_coattention(
            config.vision,
            config.text,
            fusion,
            max_text_len=config.max_text_len,
            features=_feature_spec(config),
            seed=seed,
            dual_init=config.dual_init or None,
        )
    size = models.ViltSize(num_hidden_layers=config.num_layers, **_transformer_size(config))
    return models.new_vilt(size, models.word_piece(captions, config.vocab_size), seed)


def _transformer_size(config: ImageTextConfig) -> dict[str, Any]:
    names = ("hidden_size", "image_size", "patch_size", "image_mean", "image_std", "max_text_len")
    return {
        **{name: getattr(config, name) for name in names},
        "num_attention_heads": config.num_heads,
        # As in BERT, ViT and CLIP.
        "intermediate_size": 4 * config.hidden_size,
        "hidden_dropout_prob": config.dropout or 0.0,
    }


def _feature_spec(config: ImageTextConfig) -> FeatureSpec:
    return FeatureSpec(levels=config.vision_levels, grid=config.vision_grid, size=config.vision_size)


def _new_dual(recipe: Recipe, config: TwoTowerConfig, captions: Sequence[str]) -> DualEncoder:
    seed = recipe.seed
    dual: DualEncoder
    if config.vision and config.frozen_encoders:
        projection = models.ProjectionSize(projection_dim=config.projection_dim, dropout=config.dropout or 0.0)
        sides = config.vision, config.text
        dual = models.new_frozen_dual(
            *sides, projection, max_text_len=config.max_text_len, features=_feature_spec(config), seed=seed
        )
    elif config.vision and config.text:
        dual = models.dual_from_backbones(
            config.vision, config.text, config.projection_dim, max_text_len=config.max_text_len, seed=seed
        )
    else:
        size = models.DualSize(
            num_vision_layers=config.num_layers,
            num_text_layers=config.num_text_layers,
            projection_dim=config.projection_dim,
            **_transformer_size(config),
        )
        dual = models.new_dual(size, models.word_piece(captions, config.vocab_size), seed)
    if recipe.loss.needs_bias:
        dual.start_as_siglip()
    return dual
