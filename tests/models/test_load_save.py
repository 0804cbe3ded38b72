"""Saving and loading models: every kind of reference, digests, overrides, and errors for wrong references."""

from __future__ import annotations

import errno
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import ViltConfig, ViltForImageAndTextRetrieval

from dcdctl.core import artifacts, models
from dcdctl.core.artifacts import checksums
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.models import load_save
from dcdctl.core.models.references import folders


@torch.no_grad()
def _outputs(model, pil_images, captions):
    batch = model.preprocess.images(pil_images), model.preprocess.texts(captions[:3])
    if isinstance(model, models.DualEncoder):
        return torch.stack(model(*batch))
    return model(*batch, torch.arange(3), torch.arange(3))


@pytest.fixture(params=["vilt", "dual"])
def model(request):
    return request.getfixturevalue(request.param)


def saved(model, folder):
    models.save(model, folder)
    return folder


@pytest.fixture
def vilt_dir(vilt, tmp_path):
    return saved(vilt, tmp_path / "vilt")


@pytest.fixture
def dual_dir(dual, tmp_path):
    return saved(dual, tmp_path / "dual")


@pytest.fixture
def model_dir(model, tmp_path):
    return saved(model, tmp_path / "model")


def test_half_saves_half_the_bytes_and_loads_as_float32(model, tmp_path):
    models.save(model, tmp_path / "half", half=True)
    reloaded = models.load(tmp_path / "half")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    for (name, saved), (_, loaded) in zip(
        model.network.named_parameters(), reloaded.network.named_parameters(), strict=True
    ):
        assert loaded.dtype == torch.float32, name
        assert torch.equal(loaded, saved.half().float()), name
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_saved_vilt_loads_in_plain_transformers(vilt_dir, vilt, pil_images, captions):
    plain, report = ViltForImageAndTextRetrieval.from_pretrained(vilt_dir, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    images, texts = vilt.preprocess.images(pil_images), vilt.preprocess.texts(captions[:3])
    with torch.no_grad():
        output = plain.eval()(
            input_ids=texts.input_ids,
            attention_mask=texts.attention_mask,
            pixel_values=images.pixel_values,
            pixel_mask=images.pixel_mask,
        )
    assert torch.allclose(output.logits[:, 0], _outputs(vilt, pil_images, captions), atol=1e-4)


def test_a_transformers_folder_loads_with_the_epsilons_of_the_official_code(vilt_dir, vilt, pil_images, captions):
    (vilt_dir / "dcdctl.json").unlink()
    config = ViltConfig.from_pretrained(vilt_dir)
    config.layer_norm_eps = 1e-12
    config.save_pretrained(vilt_dir)
    reloaded = models.load_fusion(vilt_dir)
    assert reloaded.layers[0].layernorm_before.eps == reloaded.network.vilt.layernorm.eps == 1e-6
    assert reloaded.network.vilt.embeddings.text_embeddings.LayerNorm.eps == 1e-12
    assert_close(_outputs(reloaded, pil_images, captions), _outputs(vilt, pil_images, captions), rtol=1e-6, atol=1e-6)


def test_saving_replaces_a_model_and_refuses_other_folders(vilt, dual, tmp_path):
    models.save(vilt, tmp_path / "model")
    models.save(dual, tmp_path / "model")
    assert isinstance(models.load(tmp_path / "model"), models.DualEncoder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()
    with pytest.raises(ModelError, match="photos holds something that is not a model"):
        models.save(vilt, tmp_path / "photos")


def test_a_run_folder_loads_its_model(vilt, tmp_path):
    models.save(vilt, tmp_path / "run" / "model")
    assert models.load(tmp_path / "run").digest == vilt.digest


def test_a_built_in_model_loads_by_name_unless_a_folder_has_that_name(vilt, dual, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "BUILT_IN", tmp_path / "built_in")
    monkeypatch.chdir(tmp_path)
    models.save(vilt, tmp_path / "built_in" / "scenes-vilt")
    assert models.load("scenes-vilt").digest == vilt.digest
    models.save(dual, tmp_path / "scenes-vilt")
    assert models.load("scenes-vilt").digest == dual.digest


def test_overrides_change_the_model(vilt_dir, tokenizer_dir):
    changed = models.load(
        vilt_dir,
        {"image_size": 64, "max_text_len": 8, "tokenizer": str(tokenizer_dir), "num_attention_heads": 2},
    )
    assert (changed.preprocess.image_size_px, changed.preprocess.max_text_len) == (64, 8)
    assert changed.layers[0].attention.attention.num_attention_heads == 2
    assert models.load(vilt_dir).preprocess.max_text_len == 40


def test_a_model_of_the_other_kind_is_refused_and_named(vilt_dir, dual_dir, dual, tmp_path):
    assert models.load_dual(dual_dir).digest == dual.digest
    with pytest.raises(ModelError, match="vilt is a fusion scorer, expected a dual encoder"):
        models.load_dual(vilt_dir)
    with pytest.raises(ModelError, match="dual is a dual encoder, expected a fusion scorer"):
        models.load_fusion(dual_dir)
    # Of a folder that other programs wrote, and of a model of the Hub: before its weights are opened.
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((vilt_dir / "config.json").read_bytes())
    with pytest.raises(ModelError, match="bare is a fusion scorer, expected a dual encoder"):
        models.load_dual(tmp_path / "bare")


def test_a_dual_encoder_refuses_overrides_that_its_weights_fix(dual_dir):
    with pytest.raises(ModelError, match="takes no image_size; it takes max_text_len, tokenizer"):
        models.load(dual_dir, {"image_size": 64})
    with pytest.raises(ModelError, match="max_text_len is 99, but the model has 40 text positions"):
        models.load(dual_dir, {"max_text_len": 99})


def test_a_reference_is_checked_without_opening_weights(vilt, tmp_path):
    models.save(vilt, tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "model.safetensors").write_bytes(b"damaged")
    for ref in (tmp_path / "run", tmp_path / "run" / "model", "scenes-vilt", "vilt-flickr30k", "owner/name"):
        models.check_ref(ref, {"image_size": 32})
        models.check_ref(ref, kind="fusion")
    with pytest.raises(ConfigError, match=r"unknown key model-set\.image_sise"):
        models.check_ref(tmp_path / "run", {"image_sise": 32})
    for ref in (tmp_path / "run", "scenes-vilt", "vilt-flickr30k"):
        with pytest.raises(ModelError, match=f"{ref} is a fusion scorer, expected a dual encoder"):
            models.check_ref(ref, kind="dual")


def test_a_check_names_a_damaged_configuration_with_the_next_step(vilt_dir):
    config = vilt_dir / "config.json"
    config.write_text(config.read_text().replace("vilt", "bert", 1))
    with pytest.raises(ModelError, match=r"config\.json is damaged: .*; save it again with this dcdctl"):
        models.check_ref(vilt_dir)
    seal = vilt_dir / "dcdctl.json"
    artifacts.write_document(seal, {**artifacts.read_document(seal), "files": {"config.json": {}}})
    with pytest.raises(ModelError, match=r"dcdctl\.json does not list .*; save it again with this dcdctl"):
        models.check_ref(vilt_dir)


def test_missing_weights_of_a_folder_are_named(vilt_dir, vilt):
    state = {name: tensor for name, tensor in vilt.network.state_dict().items() if not name.startswith("rank_output")}
    vilt.network.save_pretrained(vilt_dir, state_dict=state)
    models.seal_again(vilt_dir)
    with pytest.raises(
        ModelError, match=r"lacks 2 parameters of a ViLT scorer: rank_output\.bias, rank_output\.weight"
    ):
        models.load(vilt_dir)


def test_a_folder_of_an_earlier_format_is_refused_by_name_with_the_next_step(vilt_dir):
    (vilt_dir / "dcdctl.json").write_text(json.dumps({"format": 1, "kind": "fusion", "max_text_len": 40}))
    for read in (models.load, models.check_ref):
        with pytest.raises(
            ModelError, match=r"dcdctl\.json is of format 1, this dcdctl reads format 2; save it again .*dcdctl convert"
        ):
            read(vilt_dir)


def test_every_changed_missing_and_added_file_of_a_saved_model_is_named(model_dir):
    for path in sorted(model_dir.iterdir()):
        content = path.read_bytes()
        for damaged, message in (
            (content[:-1], f"{path.name} is damaged: it has {len(content) - 1:,} bytes, not {len(content):,}"),
            (content[:-1] + bytes([content[-1] ^ 1]), f"{path.name} is damaged: its SHA-256 is "),
            (None, f"{path.name} is missing"),
        ):
            if path.name == load_save.SETTINGS_FILE:
                break
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(ModelError, match=re.escape(message)):
                models.load(model_dir)
        path.write_bytes(content)
    models.load(model_dir)
    (model_dir / "README.md").write_text("notes")
    models.load(model_dir)
    (model_dir / "added_tokens.json").write_text('{"dog": 3}')
    with pytest.raises(ModelError, match=r"added_tokens\.json was added to a saved model"):
        models.load(model_dir)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_in_folders_of_every_family(model_dir, number):
    path = model_dir / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    weights[name][0, 0] = number
    save_file(weights, path, metadata={"format": "pt"})
    models.seal_again(model_dir)
    with pytest.raises(ModelError, match=r"model: 1 of [\d,]+ numbers of the weights \S+ are not finite"):
        models.load(model_dir)


@pytest.mark.parametrize("name", ["dcdctl.json", "config.json"])
def test_damaged_json_of_a_model_is_named(dual_dir, name):
    (dual_dir / name).write_text("[]")
    if name == "config.json":
        models.seal_again(dual_dir)
    with pytest.raises(ModelError, match=rf"{name} holds no JSON object; save "):
        models.load(dual_dir)


def test_a_file_without_permission_is_not_to_be_saved_again(dual_dir, monkeypatch):

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checksums, "sha256_of", refuse)
    with pytest.raises(
        ModelError,
        match=r"config\.json cannot be read: Permission denied; change its permissions, or those of the folders",
    ):
        models.load(dual_dir)


def test_damaged_weights_are_an_error_that_names_the_model(model_dir):
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (model_dir / "dcdctl.json").unlink()
    with pytest.raises(ModelError, match=r"cannot load .*model: "):
        models.load(model_dir)
