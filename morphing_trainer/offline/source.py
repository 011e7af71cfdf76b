"""A model on disk or on the Hub that an operation begins with: what it is, and where each of its tensors lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from morphing_trainer.checkpoint import MANIFEST, adapters, check_listed, latest_valid, verify
from morphing_trainer.errors import CheckpointError, ModelError, MorphError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import saved_adapters
from morphing_trainer.models import MASK_BUFFER, MOST_CONFIG_BYTES, find_weights
from morphing_trainer.offline.descendants import Tensors
from morphing_trainer.offline.tensor_files import TYPES, TensorFile
from morphing_trainer.reading import read_json
from morphing_trainer.run.bundle import REQUIRED, STATE, WEIGHTS, Bundle, read_bundle
from morphing_trainer.run.finding import find_model
from morphing_trainer.run.folder import is_run

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_PREFIX = "transformer."
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


@dataclass(frozen=True)
class Source:
    """A model to begin with.

    Attributes:
        folder: where it lies.
        spec: its description.
        tensors: its parameters.
        bundle: the rest of it, where it is a checkpoint of a run.
    """

    folder: Path
    spec: ModelSpec
    tensors: Tensors
    bundle: Bundle | None = None

    @property
    def extras(self) -> list[Path]:
        """Files beside the weights that go along: the tokenizer, and how to generate."""
        return [path for name in (GENERATION, *TOKENIZER_FILES) if (path := self.folder / name).is_file()]


class Stored(Tensors):
    """Tensors in files.

    Args:
        places: parameter name -> file and name there.
        types: parameter name -> its type, where it is to be another than in the file.
    """

    def __init__(self, places: Mapping[str, tuple[TensorFile, str]], types: Mapping[str, torch.dtype]) -> None:
        slots = {name: file.slots[key] for name, (file, key) in places.items()}
        super().__init__({name: (types.get(name, TYPES[slot.code]), slot.shape) for name, slot in slots.items()})
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        file, key = self._places[name]
        return file.read(key).to(self.shapes[name][0])


def open_source(name: str, revision: str | None = None, *, optimizer: bool = False) -> Source:
    """Find a model, see that it is whole, and look at its tensors; none is read.

    Args:
        name: a folder, a run, a checkpoint of one, or a Hub id.
        optimizer: the optimizer's state is wanted, which checkpoints have; of a run, the newest is taken.

    Raises:
        ModelError, CheckpointError: if there is none, it is damaged, or is no GPT-2.
    """
    folder = Path(name).expanduser()
    if optimizer:
        folder = _checkpoint(folder)
        return _open_checkpoint(folder)
    found = find_model(name)
    if (Path(found) / STATE).is_file():
        return _open_checkpoint(Path(found))
    folder, config = find_weights(found, revision, TOKENIZER_FILES)
    try:
        spec = ModelSpec(config)
        if (folder / adapters.CONFIG).is_file():
            spec = ModelSpec(config, adapter=saved_adapters(spec, folder))
        files = weight_files(folder)
        if (folder / MANIFEST).is_file():
            of_adapters = [adapters.CONFIG, adapters.WEIGHTS] if spec.sites else []
            verify(folder, [CONFIG, *(path.name for path in files), *of_adapters])
        return Source(folder, spec, _stored(folder, spec, files))
    except MorphError as error:
        where = "" if str(error).startswith(str(folder)) else f"{name}: "
        raise ModelError(f"{where}{error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model in `folder`: one, or several and an index.

    Raises:
        ModelError: if there are none, or the index is not one.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        raise ModelError(f"{folder}: has no {WEIGHTS}. Only safetensors are read: load it and call save_pretrained.")
    try:
        names = sorted(set(read_json(index, MOST_CONFIG_BYTES)["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it names no file beside it")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{index}: cannot be read ({error}); save or download the model again") from error
    return [folder / name for name in names]


def _checkpoint(folder: Path) -> Path:
    """The checkpoint meant by a run or a checkpoint."""
    if (folder / STATE).is_file():
        verify(folder, REQUIRED)
        return folder
    if not is_run(folder):
        raise ModelError(
            f"{folder}: is no checkpoint of a run, and only these hold an optimizer's state; leave --optimizer out"
        )
    found = latest_valid(folder, REQUIRED)
    if found is None:
        raise CheckpointError(f"{folder}: this run has no checkpoint that is not damaged; leave --optimizer out")
    return found


def _open_checkpoint(folder: Path) -> Source:
    """Of a checkpoint whose files have been verified."""
    bundle = read_bundle(folder, verified=True)
    spec = ModelSpec.from_dict(bundle.state["spec"])
    if spec.sites:
        check_listed(folder, (adapters.WEIGHTS, adapters.CONFIG))
    return Source(folder, spec, _stored(folder, spec, [folder / WEIGHTS]), bundle)


def _stored(folder: Path, spec: ModelSpec, paths: list[Path]) -> Stored:
    """The tensors of a model: all of its description, in their shapes, and no others."""
    found = {key: (file, key) for file in map(TensorFile, paths) for key in file.slots}
    found = {_modern(key): place for key, place in found.items() if not MASK_BUFFER.fullmatch(key)}
    if spec.config.tie_word_embeddings and _HEAD in found and _EMBEDDING in found:
        head, embedding = (file.read(key) for file, key in (found.pop(_HEAD), found[_EMBEDDING]))
        if not torch.equal(head, embedding):
            raise ModelError(
                f"{folder}: {CONFIG} ties lm_head to wte (tie_word_embeddings), but their weights differ; "
                'set "tie_word_embeddings": false in it to keep both'
            )
    names = {spec.name_before(name): name for name in spec.shapes if not spec.adapter_at(name)}
    places = _fitting(found, names, spec, folder)
    types: dict[str, torch.dtype] = {}
    if spec.sites:
        file = TensorFile(folder / adapters.WEIGHTS)
        saved, copies = adapters.saved_names(spec)
        beside = {key: (file, key) for key in file.slots}
        for copy, owner in copies.items():
            if copy not in beside or owner not in beside or not torch.equal(file.read(copy), file.read(owner).T):
                raise CheckpointError(
                    f"{file.path}: {copy} is not {owner} transposed, though the model shares the weight that they adapt"
                )
            del beside[copy]
        places |= _fitting(beside, {key: name for name, key in saved.items()}, spec, file.path)
        # Adapters have the type of new ones, whatever they were saved in.
        for name in saved:
            adapter = spec.adapter_at(name)
            assert adapter is not None
            host, key = places[adapter.host]
            types[name] = torch.promote_types(TYPES[host.slots[key].code], torch.float32)
    return Stored({name: places[name] for name in spec.shapes}, types)


def _modern(key: str) -> str:
    """A name of the original layout, which has no `transformer.`, as it is today."""
    return key if key.startswith((_PREFIX, "lm_head.")) else f"{_PREFIX}{key}"


def _fitting(
    found: Mapping[str, tuple[TensorFile, str]], names: Mapping[str, str], spec: ModelSpec, where: Path
) -> dict[str, tuple[TensorFile, str]]:
    """`found` under the names of `spec`.

    Args:
        names: name in the file -> parameter.

    Raises:
        ModelError: naming what is missing, too much, or of another shape or type.
    """
    faults = [f"{key} is missing" for key in names if key not in found]
    for key, (file, own) in found.items():
        slot = file.slots[own]
        if key not in names:
            faults.append(f"{own} is not part of the model")
        elif slot.shape != tuple(spec.shapes[names[key]]):
            faults.append(f"{own} has shape {list(slot.shape)} instead of {list(spec.shapes[names[key]])}")
        elif slot.code not in TYPES:
            faults.append(f"{own} is of type {slot.code}, and operations compute with {', '.join(TYPES)}")
    if faults:
        shown = "; ".join(faults[:3])
        raise ModelError(f"{where}: does not fit its description: {shown} ({len(faults)} in all).")
    return {names[key]: place for key, place in found.items()}
