"""A dual encoder as a folder that `SentenceTransformer(FOLDER)` reads, a late-interaction model as one that
`MultiVectorEncoder(FOLDER)` reads; images and captions are encoded in separate calls.

It is the folder for transformers with four more small files, in the layout of sentence-transformers from version 5.4:
there its Transformer module calls get_text_features and get_image_features of a model. So no module of dcdctl is
needed. For late interaction that module gives the states of tokens, and the next ones project, mask and normalize
them. Only a network that transformers has no class for (`ExportSpec.code`) is code in the folder and needs
`trust_remote_code=True`.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dcdctl.core import files, models
from dcdctl.core.artifacts import Document
from dcdctl.core.errors import MissingError, install_command, require_extra
from dcdctl.core.export import to_transformers
from dcdctl.core.export.check import Check, Samples, compare_logits, embed_in_two_batches
from dcdctl.core.export.target import Target, with_timm
from dcdctl.core.models import silence_transformers
from dcdctl.core.scoring import Vectors

PACKAGE = "sentence_transformers"
NORMALIZE = "1_Normalize"
# Names from before 5.4, which every version knows; the first module is in the root folder.
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": NORMALIZE, "type": "sentence_transformers.models.Normalize"},
]
TOKENS = "token_embeddings"
"""The output of a late-interaction model's modules."""
# Unit vectors, so that `similarity` gives the scores that the model was trained with.
_VECTOR = {
    "class": "SentenceTransformer",
    "similarity": "cosine",
    "of": "pooler_output",
    "output": "sentence_embedding",
}
_TOKENS = {"class": "MultiVectorEncoder", "similarity": "meanmaxsim", "of": "last_hidden_state", "output": TOKENS}
_USAGE = """\
from PIL import Image
from sentence_transformers import {kind}

model = {kind}("{name}"{trust})
images = model.encode_document([Image.open("photo.png").convert("RGB")])
texts = model.encode_query(["a dog in the snow"])
scores = model.similarity(texts, images)
"""


class SentenceTransformers(Target):
    """The folder for transformers and four more files."""

    name = "sentence-transformers"
    tags = ("sentence-transformers",)
    task = "sentence-similarity"
    no_fusion = "has no vectors"

    @classmethod
    def require(cls) -> None:
        require_extra(cls.name, PACKAGE, needed_by=f"--to {cls.name}")
        if importlib.util.find_spec(f"{PACKAGE}.multi_vector_encoder") is None:
            raise MissingError(
                "the sentence-transformers installed here is older than 6.0", hint=install_command(cls.name)
            )

    @property
    def no_tokens(self) -> str:
        dual = self.model.as_dual
        if not self.spec.model_class or self.spec.code:
            return f"no class of transformers gives the token states of {dual.config['model_type']}"
        is_padded = dual.preprocess.images([Image.new("RGB", (64, 64))]).pixel_mask is not None
        return "its images have padding, which no module there masks" if is_padded else ""

    def write(self) -> None:
        folder, spec = self.folder, self.spec
        if spec.library == self.name:
            models.save(self.model.export_copy(), folder)
            return
        gives = _TOKENS if self.has_tokens else _VECTOR
        to_transformers.write(self.model.as_dual, folder)
        files.write_json(folder / "modules.json", self._write_late() if self.has_tokens else MODULES)
        library: Document = {
            "model_type": gives["class"],
            "prompts": {},
            "similarity_fn_name": gives["similarity"],
            "default_prompt_name": None,
        }
        files.write_json(folder / "config_sentence_transformers.json", library)
        module: Document = {
            "transformer_task": "feature-extraction",
            # The methods of every dual encoder in transformers.
            "modality_config": {
                "text": {"method": "get_text_features", "method_output_name": gives["of"]},
                "image": {"method": "get_image_features", "method_output_name": gives["of"]},
            },
            "module_output_name": gives["output"],
            # torchvision, if it is installed, would resize images differently than Pillow.
            "processor_kwargs": {"backend": "pil"},
        }
        if spec.padded_length is not None:
            # The library pads captions to the longest of a batch, and hands a mask on where a tokenizer gives one.
            module["processing_kwargs"] = {"text": {**spec.text_options, "return_attention_mask": False}}
        files.write_json(folder / models.MODULE_CONFIG_FILE, module)
        if self.has_tokens:
            # The settings are those of the dual encoder, and the folder is none.
            (folder / models.SETTINGS_FILE).unlink()
            return
        files.write_json(folder / NORMALIZE / "config.json", {"module_input_name": "sentence_embedding"})
        models.seal_again(folder)

    def _write_late(self) -> list[Document]:
        """Write what follows the first module of a late-interaction model, and return the list of all modules."""
        from sentence_transformers.base.modules import Dense, Normalize, Router
        from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

        def route(projection: nn.Linear, *, has_mask: bool, positions_ND: Tensor | None = None) -> list[Any]:
            width, weight = projection.in_features, projection.weight.detach()
            project = Dense(
                in_features=width,
                out_features=self.model.token_dim,
                bias=False,
                activation_function=None,
                init_weight=weight,
                module_input_name=TOKENS,
            )
            modules = [project] if positions_ND is None else [project, Normalize(TOKENS), *_add_positions(positions_ND)]
            if has_mask:
                return modules
            # The library keeps the tokens of an attention mask. Where the network takes none, a layer gives 1 for each.
            ones = Dense(
                in_features=width,
                out_features=1,
                bias=True,
                activation_function=nn.Flatten(),
                init_weight=torch.zeros(1, width),
                init_bias=torch.ones(1),
                module_input_name=TOKENS,
                module_output_name="attention_mask",
            )
            return [ones, *modules]

        tokens, is_padded = self.model.tokens, self.spec.padded_length is not None
        routes = {
            "text": route(tokens.texts, has_mask=not is_padded),
            "image": route(tokens.images, has_mask=False, positions_ND=tokens.positions),
        }
        pads = [self.model.preprocess.tokenizer.pad_token] if is_padded else []
        modules = [Router(routes), MultiVectorMask(pads, skiplist_tasks=["query", "document"]), Normalize(TOKENS)]
        listed: list[Document] = [
            {"idx": 0, "name": "0", "path": "", "type": f"{PACKAGE}.base.modules.transformer.Transformer"}
        ]
        for index, module in enumerate(modules, start=1):
            kind = type(module)
            path = f"{index}_{kind.__name__}"
            (self.folder / path).mkdir()
            module.save(str(self.folder / path))
            entry = {"idx": index, "name": str(index), "path": path, "type": f"{kind.__module__}.{kind.__name__}"}
            listed.append(entry)
        return listed

    def compare(self, samples: Samples) -> tuple[Check, ...]:
        if not self.has_tokens:
            return super().compare(samples)
        from sentence_transformers import MultiVectorEncoder

        with silence_transformers():
            encoder = MultiVectorEncoder(str(self.folder), device="cpu")

        def score(part: slice) -> Tensor:
            texts = encoder.encode_query(samples.captions[part], show_progress_bar=False)
            images = encoder.encode_document(samples.images[part], show_progress_bar=False)
            scores: Tensor = encoder.similarity_pairwise(texts, images)
            return scores

        # In two batches, as vectors are compared.
        parts = [score(slice(0, 1))]
        if len(samples.images) > 1:
            parts.append(score(slice(1, None)))
        maxsim = torch.cat(parts)
        scale = self.model.logit_scale.detach().cpu()
        return (compare_logits(scale * maxsim, to_transformers.scores_of(self.model, samples)),)

    def embed(self, samples: Samples) -> Vectors:
        from sentence_transformers import SentenceTransformer

        # Its notes on progress would break the bar of the export.
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
        with silence_transformers():
            encoder: Any = SentenceTransformer(str(self.folder), device="cpu", trust_remote_code=bool(self.spec.code))

        options: Document = {"show_progress_bar": False, "convert_to_tensor": True}
        images, texts = partial(encoder.encode_document, **options), partial(encoder.encode_query, **options)
        return embed_in_two_batches(samples, images, texts)

    def usage(self) -> str:
        gives = _TOKENS if self.has_tokens else _VECTOR
        return _USAGE.format(kind=gives["class"], name=self.job.name, trust=self.trust_code)

    def requirements(self) -> list[str]:
        return with_timm(["sentence-transformers>=6.0"], self.spec)


def _add_positions(positions_ND: Tensor) -> list[Any]:
    """Modules of the library that add a vector to each token by its place among the N tokens.

    None of them knows places, but a convolution pads with zeros before the first token. So a layer appends a constant 1
    to each token, a convolution makes it the mark of the first token, and the next one answers the mark with a position
    at each place.
    """
    from sentence_transformers.base.modules import Dense

    num_tokens, width = positions_ND.shape
    marked = width + 1
    append = Dense(
        in_features=width,
        out_features=marked,
        activation_function=None,
        init_weight=torch.eye(marked, width),
        init_bias=torch.eye(marked)[width].clone(),
        module_input_name=TOKENS,
    )
    mark = _identity_kernel(marked, marked, 3)
    # Its own 1 less that of the token before it, which the first has not.
    mark[width, width, 0] = -1
    # From the first token it reaches the last one.
    answer = _identity_kernel(width, marked, 2 * num_tokens - 1)
    # At place n the mark lies n tokens back.
    answer[:, width, :num_tokens] = positions_ND.detach().T.flip(1)
    return [append, _convolution(mark), _convolution(answer)]


def _identity_kernel(num_outputs: int, num_inputs: int, size: int) -> Tensor:
    """The weights of a convolution that gives the first numbers of each token as they are."""
    kernel = torch.zeros(num_outputs, num_inputs, size)
    # The middle of a kernel is the token itself.
    kernel[:, :, size // 2] = torch.eye(num_outputs, num_inputs)
    return kernel


def _convolution(kernel: Tensor) -> Any:
    """The library's module with these weights, without a bias."""
    from sentence_transformers.sentence_transformer.modules import CNN

    num_outputs, num_inputs, size = kernel.shape
    module: Any = CNN(num_inputs, num_outputs, kernel_sizes=[size])
    (convolution,) = module.convs
    convolution.weight = nn.Parameter(kernel)
    nn.init.zeros_(convolution.bias)
    return module
