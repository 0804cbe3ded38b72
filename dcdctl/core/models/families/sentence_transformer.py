"""Models of sentence-transformers that embed images and texts, as dual encoders that are not trained here.

Its methods `encode_query` and `encode_document` compute the vectors of captions and of images, each with its prompt if
the model has one: images and captions reach them as they are. A folder whose only network is a CLIP or one of its
relatives is no such model: it is loaded by the family of that network (`folders.network_folder`).

Shape letters: I images, T texts, D length of the vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Never, Self

import torch
from PIL import Image
from torch import Tensor, nn

from dcdctl.core import files
from dcdctl.core.errors import ModelError, require_extra
from dcdctl.core.models.dual import DualEncoder, unit_vectors
from dcdctl.core.models.families.raw_pairs import RawPreprocess, captions_of, check_read, pictures_of, processor_table
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch, unencoded
from dcdctl.core.models.model import RetrievalModel
from dcdctl.core.models.networks.towers import TrainedParts
from dcdctl.core.models.protocols import ExportSpec, Table
from dcdctl.core.models.references import folders
from dcdctl.core.models.references.folders import MODULES_FILE, SENTENCE_TRANSFORMER, module_types
from dcdctl.core.models.references.loading import hub_errors, quietly
from dcdctl.core.models.tokenizer import num_text_positions

PIL = "pil"
"""The image processors of transformers that need no torchvision."""


class ByteTokens:
    """The bytes of a caption where a tokenizer of transformers is expected; none of them is special or unknown."""

    all_special_ids: tuple[int, ...] = ()
    unk_token_id = None

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        """The bytes of a text."""
        return {"input_ids": list(text.encode())}


class LibraryModel(RetrievalModel):
    """What the models share that sentence-transformers computes, whole images and texts to vectors."""

    model_type: ClassVar[str]
    library_class: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("sentence_transformers.",)
    """Those whose modules the library reads by classes of its own."""
    alternative: ClassVar[str]
    """What to do with a model of texts alone."""
    options: ClassVar[Mapping[str, bool]] = {}
    """Arguments of the library's two methods besides the inputs."""
    network: Any
    """The model of the library: a list of modules."""
    preprocess: RawPreprocess

    def __init__(self, encoder: nn.Module, ref: str) -> None:
        """`ref` is where it was loaded from, for messages."""
        super().__init__(encoder, RawPreprocess(tokenizer=ByteTokens()))
        self.ref = ref
        # One image and one caption show whether the processor reads both.
        image = self._vectors(self.preprocess.images([Image.new("RGB", (64, 64))]))[0].shape[-1]
        self.width: int = self._vectors(self.preprocess.texts(["a"]))[0].shape[-1]
        if image != self.width:
            raise ModelError(f"{ref} embeds images in {image} numbers and texts in {self.width}")

    @classmethod
    def load(cls, ref: str, table: Table, saved: Table | None = None) -> Self:
        """The model of a folder; `table` are the user's overrides, of which it takes none.

        MissingError if sentence-transformers is not installed; ModelError for a model of texts alone, and for modules
        with code of their own. No code of the folder is run.
        """
        if foreign := [name for name in module_types(Path(ref)) if not name.startswith(cls.packages)]:
            raise ModelError(
                f"{ref} has a module {foreign[0]}, whose code is not run",
                hint=f"{MODULES_FILE} names it; take another model",
            )
        require_extra("sentence-transformers", "sentence_transformers", needed_by=f"{ref}, a {cls.library_class},")
        import sentence_transformers

        with quietly(), hub_errors(ref, hint=f"try `{cls.library_class}({ref!r})`"):
            # The dtype of the options is that of the network, and `float` also converts the modules after it.
            encoder = getattr(sentence_transformers, cls.library_class)(
                ref, device="cpu", trust_remote_code=False, local_files_only=True, model_kwargs={"dtype": torch.float32}
            ).float()
            if not {"image", "text"} <= set(encoder.modalities):
                modalities = ", ".join(map(str, encoder.modalities))
                raise ModelError(f"{ref} reads {modalities} alone, not images and texts", hint=cls.alternative)
            if hasattr(network := encoder[0], "model"):
                check_read(network, ref, "its network")
            return cls(encoder.requires_grad_(False), ref)

    def _vectors(self, batch: Any) -> Any:
        """What the library computes of images or captions; ValueError for features."""
        inputs = unencoded(batch)
        # As dictionaries: a caption that is the path or the address of an image would be read as that image.
        items: list[Table]
        if isinstance(inputs, ImageBatch):
            encode, items = self.network.encode_document, [{"image": each} for each in pictures_of(inputs)]
        else:
            encode, items = self.network.encode_query, [{"text": each} for each in captions_of(inputs)]
        return encode(items, batch_size=len(items), show_progress_bar=False, **self.options)

    @property
    def config(self) -> Table:
        """The modules and their settings, and the configuration of a network of transformers."""
        modules = [[type(module).__name__, module.get_config_dict()] for module in self.network]
        network = getattr(self.network[0], "model", None)
        return {
            "model_type": self.model_type,
            "modules": modules,
            "network": network.config.to_dict() if network is not None else {},
        }

    @property
    def settings(self) -> Table:
        """Further settings that decide a vector, those of the processor among them."""
        return {
            "kind": self.kind,
            "prompts": self.network.prompts,
            "default_prompt": self.network.default_prompt_name,
            **processor_table(self.network[0].processor),
        }

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write the folder of the library."""
        encoder = copy.deepcopy(self.network).half() if half else self.network
        with quietly():
            encoder.save_pretrained(str(folder), create_model_card=False)
        image_processor = getattr(encoder[0].processor, "image_processor", None)
        if getattr(image_processor, "backend", None) == PIL:
            # The library leaves this out, and would read the copy with torchvision, which resizes images differently.
            path = folders.network_folder(folder) / folders.MODULE_CONFIG_FILE
            files.write_json(path, {**files.read_json(path), "processor_kwargs": {"backend": PIL}})


class SentenceTransformerDual(LibraryModel, DualEncoder):
    """Embeds images and captions with a SentenceTransformer."""

    model_type = SENTENCE_TRANSFORMER
    library_class = "SentenceTransformer"
    alternative = "name a dual encoder, which embeds images too; candidates.model takes a text encoder"
    options: ClassVar[Mapping[str, bool]] = {"convert_to_tensor": True}

    def __init__(self, encoder: Any, ref: str) -> None:
        if hasattr(encoder[0], "model"):
            text_config = encoder[0].model.config.get_text_config()
            # The library cuts captions at the last position only where the network has one configuration.
            if hasattr(text_config, "max_position_embeddings"):
                limit = num_text_positions(text_config)
                if encoder.max_seq_length is None or encoder.max_seq_length > limit:
                    encoder.max_seq_length = limit
        super().__init__(encoder, ref)
        self.noun, self.embedding_dim = f"{ref}, a model of sentence-transformers,", self.width

    @property
    def settings(self) -> Table:
        """Those of the library's models, and how vectors and captions are cut."""
        cuts = {"truncate_dim": self.network.truncate_dim, "max_seq_length": self.network.max_seq_length}
        return {**super().settings, **cuts}

    @property
    def logit_scale(self) -> Tensor:
        """1: sentence-transformers compares vectors by their cosine alone."""
        return torch.ones((), device=self.calibration.offset.device)

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D. ValueError for features."""
        # Copies, because the library computes in inference mode, whose tensors take no part in a loss.
        return unit_vectors(self._vectors(images).clone())

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D. ValueError for features."""
        return unit_vectors(self._vectors(texts).clone())

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    def set_trained(self, parts: TrainedParts) -> Never:
        """ModelError: such a model is not trained here."""
        raise self.not_trained()

    def export_spec(self) -> ExportSpec:
        """No class of transformers: sentence-transformers reads the saved folder."""
        refusals = {
            "transformers": "no class of transformers computes all of its modules",
            "onnx": "its modules prepare captions and images themselves, and no graph of tensors holds that",
        }
        return ExportSpec(library="sentence-transformers", refusals=refusals)

    def export_copy(self) -> Self:
        """The same model: its folder needs no dcdctl."""
        return self


load = SentenceTransformerDual.load
