"""SentenceTransformers that embed images and texts: the vectors of `encode_document` and `encode_query`, and a CLIP
inside that is loaded as a CLIP."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from duals import save_sentence_transformer, vectors_of
from encoders import save_text
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch.testing import assert_close
from vlm import save_embedder

from dcdctl.core import models, scoring
from dcdctl.core.errors import ModelError
from dcdctl.core.models.references import folders

CAPTIONS = [
    "a dog runs over grass",
    "two people",
    "a man with a red hat stands before a house and looks at the sea",
    "a dog",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_sentence_transformer(CAPTIONS, tmp_path_factory.mktemp("plain"), with_dense=False)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return save_sentence_transformer(CAPTIONS, tmp_path_factory.mktemp("dense"), with_dense=True)


def own_vectors(folder, images, texts, **options):
    encoder = SentenceTransformer(str(folder), device="cpu", **options)
    images_ID = encoder.encode_document(images, normalize_embeddings=True)
    return torch.from_numpy(images_ID), torch.from_numpy(encoder.encode_query(texts, normalize_embeddings=True))


def without_modalities(folder):
    """Make the settings of the first module those of older versions, which do not name what it reads."""
    path = folder / "sentence_bert_config.json"
    table = json.loads(path.read_text())
    del table["modality_config"]
    path.write_text(json.dumps(table))


def assert_equal_and_varied(found, expected):
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(len(vectors.round(decimals=3).unique(dim=0)) == 4 for vectors in found)


def edit(folder, tmp_path, name, change):
    """A copy of a folder with a changed JSON file."""
    shutil.copytree(folder, tmp_path / "edited")
    path = tmp_path / "edited" / name
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    return tmp_path / "edited"


def test_vectors_equal_those_of_encode_whatever_the_size_of_a_batch(dense, photos):
    model = models.load_dual(dense)
    found, expected = vectors_of(model, photos, CAPTIONS), own_vectors(dense, photos, CAPTIONS)
    assert_equal_and_varied(found, expected)
    alone = vectors_of(model, photos[1:2], CAPTIONS[2:3])
    assert_close(alone, (expected[0][1:2], expected[1][2:3]), rtol=1e-4, atol=1e-5)
    assert model.embedding_dim == 6
    assert (float(model.logit_scale), model.logit_bias) == (1.0, None)


def test_images_are_read_by_a_network_with_a_vision_part_in_files_without_modalities(dense, photos, tmp_path):
    shutil.copytree(dense, tmp_path / "old")
    without_modalities(tmp_path / "old")
    # The name of the first module says nothing of images.
    assert folders.module_types(tmp_path / "old")[0].endswith(".Transformer")
    assert folders.type_of(tmp_path / "old") == folders.type_of(dense) == folders.SENTENCE_TRANSFORMER


METHODS = {name: {"method": f"get_{name}_features"} for name in ("text", "image")}
"""What a SentenceTransformer computes if its vectors are those of its network."""


@pytest.mark.parametrize(
    ("modules", "settings", "prompts", "network", "expected"),
    [
        (["Transformer"], {"modality_config": METHODS}, {}, "clip", "clip"),
        (["Transformer", "Normalize"], {"modality_config": METHODS}, {}, "clip", "clip"),
        (["Transformer", "Dense"], {"modality_config": METHODS}, {}, "clip", folders.SENTENCE_TRANSFORMER),
        (["CLIPModel"], {}, {}, "clip", "clip"),
        (["CLIPModel", "Dense"], {}, {}, "clip", folders.SENTENCE_TRANSFORMER),
        (["Router"], {}, {}, "bert", folders.SENTENCE_TRANSFORMER),
        (
            ["Transformer"],
            {"modality_config": {"message": {"method": "forward"}}},
            {},
            "qwen",
            folders.SENTENCE_TRANSFORMER,
        ),
        (["Transformer", "Dense"], {"modality_config": {"text": {"method": "forward"}}}, {}, "bert", "bert"),
        (["Transformer"], {"modality_config": METHODS}, {}, "blip", folders.SENTENCE_TRANSFORMER),
        (["Transformer"], {"modality_config": METHODS}, {"truncate_dim": 8}, "clip", folders.SENTENCE_TRANSFORMER),
        (["Transformer"], {"modality_config": METHODS}, {"prompts": {"query": ""}}, "clip", "clip"),
    ],
)
def test_a_folder_has_the_type_of_its_network_if_it_gives_the_networks_own_vectors(
    modules, settings, prompts, network, expected, tmp_path
):
    entries = [{"path": "", "type": f"sentence_transformers.models.{name}"} for name in modules]
    for name, content in (
        ("modules.json", entries),
        ("sentence_bert_config.json", settings),
        ("config_sentence_transformers.json", prompts),
        ("config.json", {"model_type": network}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    assert folders.type_of(tmp_path) == expected


def test_an_embedder_over_a_vision_language_model_reads_captions_as_queries(photos, tmp_path):
    folder = save_embedder(tmp_path / "embedder", CAPTIONS)
    model = models.load_dual(folder)
    found = vectors_of(model, photos, CAPTIONS)
    assert_equal_and_varied(found, own_vectors(folder, photos, CAPTIONS))
    plain = torch.from_numpy(SentenceTransformer(str(folder), device="cpu").encode(CAPTIONS))
    assert (found[1] - plain).abs().max() > 0.1  # without the prompt for queries


def test_a_caption_longer_than_the_model_reads_is_cut(dense):
    model = models.load_dual(dense)
    texts_TD = vectors_of(model, [Image.new("RGB", (8, 8))], ["two people " * 40, "two people " * 50])[1]
    assert_close(texts_TD[0], texts_TD[1])


def test_a_caption_that_is_the_path_of_an_image_is_read_as_text(dense, photos, tmp_path):
    path = tmp_path / "photo.png"
    photos[0].save(path)
    model = models.load_dual(dense)
    images_ID, texts_TD = vectors_of(model, photos[:1], [str(path)])
    assert not torch.allclose(images_ID, texts_TD, atol=1e-3)


def test_a_network_alone_is_loaded_by_its_own_family(plain, photos):
    model = models.load_dual(plain)
    assert folders.type_of(plain) == "clip"
    assert_equal_and_varied(
        vectors_of(model, photos, CAPTIONS), own_vectors(plain, photos, CAPTIONS, processor_kwargs={"backend": "pil"})
    )
    assert model.export_spec().model_class == "CLIPModel"


def test_a_network_in_a_folder_of_its_own_is_found(plain, photos, tmp_path):
    folder = tmp_path / "older"
    (folder / "0_CLIPModel").mkdir(parents=True)
    for path in plain.iterdir():
        if path.is_file() and path.name not in (
            "modules.json",
            "config_sentence_transformers.json",
            "sentence_bert_config.json",
        ):
            shutil.copy(path, folder / "0_CLIPModel")
    entry = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([entry]))
    assert models.load_dual(folder).digest == models.load_dual(plain).digest
    (folder / "modules.json").write_text(json.dumps([{**entry, "path": "../older/0_CLIPModel"}]))
    with pytest.raises(ModelError):
        models.load_dual(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sentence_bert_config.json", lambda table: table.update(max_seq_length=4)),
        ("sentence_bert_config.json", lambda table: table.update(processing_kwargs={"text": {"max_length": 4}})),
        (
            "config_sentence_transformers.json",
            lambda table: table.update(prompts={"query": "two "}, default_prompt_name="query"),
        ),
        ("config_sentence_transformers.json", lambda table: table.update(prompts={"query": "two "})),
    ],
)
def test_settings_that_change_vectors_are_honored_and_in_the_digest(name, change, plain, photos, tmp_path):
    folder = edit(plain, tmp_path, name, change)
    model = models.load_dual(folder)
    assert type(model).__name__ == "SentenceTransformerDual"
    found = vectors_of(model, photos, CAPTIONS)
    assert_close(found, own_vectors(folder, photos, CAPTIONS), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[1], vectors_of(models.load_dual(plain), photos, CAPTIONS)[1], atol=1e-3)
    twin = edit(folder, tmp_path / "twin", "sentence_bert_config.json", lambda table: table.update(max_seq_length=6))
    assert models.load_dual(twin).digest != model.digest


def test_a_saved_model_is_sealed_and_read_by_both_libraries(dense, photos, tmp_path):
    model = models.load_dual(dense)
    expected = vectors_of(model, photos, CAPTIONS)
    models.save(model, tmp_path / "model")
    loaded = models.load_dual(tmp_path / "model")
    assert (loaded.digest, type(loaded)) == (model.digest, type(model))
    assert_close(own_vectors(tmp_path / "model", photos, CAPTIONS), expected, rtol=1e-5, atol=1e-5)
    models.save(model, tmp_path / "half", half=True)
    half = models.load_dual(tmp_path / "half")
    assert models.saved_fingerprint(tmp_path / "half") == half.digest
    assert_close(vectors_of(half, photos, CAPTIONS), expected, rtol=0, atol=5e-3)
    weights = tmp_path / "model" / "1_Dense" / "model.safetensors"
    state = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in state.items()}, weights)
    with pytest.raises(ModelError, match=r"1_Dense/model\.safetensors is damaged"):
        models.load_dual(tmp_path / "model")


def test_it_is_refused_for_training_by_name(dense):
    model = models.load_dual(dense)
    for train in (lambda: model.set_dropout(0.1), lambda: model.set_trained(models.TrainedParts())):
        with pytest.raises(
            ModelError,
            match="a model of sentence-transformers, cannot be trained here; use it as a teacher",
        ):
            train()


@pytest.mark.parametrize("is_old", [False, True], ids=["saved now", "saved by an older version"])
def test_a_model_of_texts_alone_is_refused_by_name_and_embeds_candidates(is_old, captions, tmp_path):
    transformer = Transformer(save_text("bert", captions, tmp_path / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device="cpu").save(
        str(tmp_path / "texts")
    )
    if is_old:
        without_modalities(tmp_path / "texts")
    with pytest.raises(
        ModelError,
        match=r"texts is a SentenceTransformer over a bert, which embeds texts alone; name a CLIP, a SigLIP or another",
    ):
        models.load_dual(tmp_path / "texts")
    embedder = scoring.load_embedder(str(tmp_path / "texts"), torch.device("cpu"))
    assert embedder.images is None


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken", ("cls", "mean")])
@pytest.mark.parametrize("is_old", [False, True], ids=["saved now", "saved by an older version"])
def test_a_model_of_texts_alone_pools_as_its_library_or_is_refused(mode, is_old, captions, tmp_path):
    transformer = Transformer(save_text("bert", captions, tmp_path / "bert"))
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
    encoder = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    encoder.save(str(tmp_path / "texts"))
    if is_old:
        names = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "lasttoken": "lasttoken"}
        flags = {
            f"pooling_mode_{name}": way in mode if isinstance(mode, tuple) else way == mode
            for way, name in names.items()
        }
        (tmp_path / "texts" / "1_Pooling" / "config.json").write_text(
            json.dumps({"word_embedding_dimension": 16, **flags})
        )
    if mode not in ("mean", "cls"):
        with pytest.raises(ModelError, match=r"is a SentenceTransformer with pooling .*, which is not computed here"):
            scoring.load_embedder(str(tmp_path / "texts"), torch.device("cpu"))
        return
    embedder = scoring.load_embedder(str(tmp_path / "texts"), torch.device("cpu"))
    texts = [caption for caption in captions if len(caption.split()) < 20][:5]
    with torch.no_grad():
        found_TD = embedder.texts(embedder.preprocess.texts(texts))
    assert_close(found_TD, torch.from_numpy(encoder.encode(texts)), rtol=1e-5, atol=1e-5)


def test_no_code_of_a_folder_is_run(dense, tmp_path):
    (tmp_path / "hostile.py").write_text("raise SystemExit('code ran')")
    folder = edit(dense, tmp_path, "modules.json", lambda table: table[1].update(type="hostile.Dense"))
    shutil.copy(tmp_path / "hostile.py", folder)
    with pytest.raises(ModelError, match=r"has a module hostile\.Dense, whose code is not run"):
        models.load_dual(folder)


@pytest.mark.parametrize("name", ["image_size", "max_text_len", "tokenizer"])
def test_it_takes_no_settings(name, dense):
    with pytest.raises(ModelError, match=f"takes no {name}; it takes no setting"):
        models.load_dual(dense, {name: "words" if name == "tokenizer" else 8})


def test_a_missing_weight_is_an_error(dense, tmp_path):
    shutil.copytree(dense, tmp_path / "folder")
    path = tmp_path / "folder" / "model.safetensors"
    state = load_file(path)
    del state["visual_projection.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 parameters of its network: .*visual_projection\.weight"):
        models.load_dual(tmp_path / "folder")
