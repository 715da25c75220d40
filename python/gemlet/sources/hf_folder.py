"""Opens a model in a Hugging Face folder, or in a folder that gemlet packed: :func:`open_folder`."""

from __future__ import annotations

import os

from gemlet.base.records import replace
from gemlet.base.text import show
from gemlet.chat.templates import read_chat_template
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.checkpoint.scaled_tensors import Rounding, with_scales
from gemlet.checkpoint.tensor_files import TensorFiles
from gemlet.config.generation_defaults import read_end_ids, read_recommended
from gemlet.config.hf_config import read_config
from gemlet.config.image_settings import PREPROCESSOR_FILES, read_image_settings
from gemlet.config.mobilenet import ABSENT_KEYS, MobileNetConfig
from gemlet.config.sentence_transformers import read_dense_layers, read_prompts
from gemlet.config.sound_settings import read_sound_settings
from gemlet.config.text_config import TextConfig
from gemlet.errors import TensorError
from gemlet.sources.model_files import ModelFiles
from gemlet.sources.token_order import read_token_order
from gemlet.sources.tokenizers import asked_by_folder, chat_format_of, open_tokenizer
from gemlet.tokenizer.stored import STORED_FILE, TOKENIZER_FILES, read_stored
from gemlet.weights.cuts import Cut, Rearranged
from gemlet.weights.hf_names import (
    TOKEN_ORDER,
    dense_tensor,
    is_tower,
    map_tensors,
    matrix_columns,
    split_prefix,
    without_wrappers,
)
from gemlet.weights.packed_file import PackedCheckpoint, is_packed, packed_towers
from gemlet.weights.slots import TABLE_SCALES, is_balance, is_rounding, rounded_slots
from gemlet.weights.slots import TOKEN_ORDER as PACKED_TOKEN_ORDER
from gemlet.weights.tower_slots import is_transposed

# Files that describe the model, besides the weights, the vocabulary and the chat template.
_DESCRIPTION_FILES = (
    "config.json",
    "generation_config.json",
    "config_sentence_transformers.json",
    *PREPROCESSOR_FILES,
)


def open_folder(
    folder: str, *, name: str, cache: bool, headers_only: bool = False, chat_template: str | None = None
) -> ModelFiles:
    config = read_config(folder)
    described: tuple[str, ...] = _DESCRIPTION_FILES
    prompts = None
    if config.bidirectional:
        config, modules = read_dense_layers(folder, config)
        prompts = read_prompts(folder)
        described += modules
    if config.vision is not None:
        absent = ABSENT_KEYS if isinstance(config.vision, MobileNetConfig) else None
        settings = read_image_settings(folder, config.vision.settings, absent)
        vision = replace(config.vision, settings=settings)
        settings.check(folder, **vision.fixed_settings)
        config = replace(config, vision=vision)
    if config.audio is not None and config.audio.settings is not None:
        sounds = read_sound_settings(folder, config.audio.settings)
        config = replace(config, audio=replace(config.audio, settings=sounds))
    end_ids = read_end_ids(folder, config)
    sampling = read_recommended(folder, config.vocab_size)
    not_followed = dict(sampling.not_followed)
    vocabulary = tokenizer = chat_format = template = None
    if any(os.path.lexists(os.path.join(folder, name)) for name in TOKENIZER_FILES):
        stored = os.path.join(folder, STORED_FILE)
        if os.path.lexists(stored):
            vocabulary, tokenizer = open_tokenizer(lambda: read_stored(stored), dict, cache=False)
        else:
            from gemlet.tokenizer.files import read_contents, read_vocabulary

            vocabulary, tokenizer = open_tokenizer(
                lambda: read_vocabulary(folder), lambda: read_contents(folder), cache=cache
            )
        if not config.bidirectional:
            eos = None if tokenizer.eos_id is None else tokenizer.id_to_piece(tokenizer.eos_id)
            not_followed |= asked_by_folder(folder, eos)
            template = chat_template or read_chat_template(folder)
            chat_format = chat_format_of(config, tokenizer, template, override=chat_template is not None)
    passed_over = (*config.passed_over, *sampling.passed_over, *(prompts.passed_over if prompts else ()))
    cuts: dict[str, Cut] = {}
    roundings: dict[str, Rounding] = {}
    opened = Checkpoint(folder)
    checkpoint: TensorFiles = opened
    order = None
    try:
        if is_packed(opened):
            config = replace(config, tie_word_embeddings="lm_head" not in opened.tensors)
            config = replace(packed_towers(config, opened), rounded=rounded_slots(opened.tensors))
            order = read_token_order(opened, config, PACKED_TOKEN_ORDER)
            checkpoint = PackedCheckpoint(opened, config)
            slots = {
                name: name
                for name in checkpoint.tensors
                if not is_balance(name) and not is_rounding(name) and name != TABLE_SCALES
            }
        else:
            for index in range(int(config.projects_itself), len(config.dense_sizes)):
                opened.add_folder(os.path.dirname(dense_tensor(index)))
            if config.quantization is not None:
                roundings = _read_integers(opened, config)
            shapes = {tensor: info.shape for tensor, info in checkpoint.tensors.items()}

            def same_values(table: str, head: str) -> bool:
                return head not in roundings and opened.same_values(table, head)

            same = None if headers_only else same_values
            try:
                slots, found, extra = map_tensors(shapes, config, where=folder, same=same)
            except TensorError as problem:
                for tensor, file in opened.absent.items():  # the first of these tensors explains the problem
                    raise TensorError(
                        f"{problem}. The index says that tensor {show(tensor)} is in {show(file)}, but that "
                        "file does not have it"
                    ) from None
                raise
            passed_over += (*extra, *opened.passed_over)
            order = read_token_order(opened, config, TOKEN_ORDER)
            if found.tie_word_embeddings != config.tie_word_embeddings:
                passed_over += ("tie_word_embeddings",)
            config = replace(found, rounded=tuple(sorted(slots[name] for name in roundings if name in slots)))
            cuts = {
                name: Rearranged.transposed(shapes[name])
                for name, slot in slots.items()
                if is_transposed(slot, config.family)
            }
            for tensor in slots:
                checkpoint.dtype(tensor)  # raises for a type that cannot be read
    except BaseException:
        checkpoint.close()
        raise
    paths = [os.path.join(folder, file) for file in described]
    return ModelFiles(
        name=name,
        config=config,
        end_ids=end_ids,
        sampling=sampling.values,
        not_followed=not_followed,
        tokenizer=tokenizer,
        chat_format=chat_format,
        checkpoint=checkpoint,
        slots=slots,
        cuts=cuts,
        vocabulary=vocabulary,
        config_files=tuple(path for path in paths if os.path.isfile(path)),
        config_texts={} if template is None else {"chat_template.jinja": template},
        prompts=prompts,
        roundings={slots[name]: rounding for name, rounding in roundings.items() if name in slots},
        passed_over=passed_over,
        token_order=order,
    )


def _read_integers(opened: Checkpoint, config: TextConfig) -> dict[str, Rounding]:
    """Combines the integers and scales of a quantized checkpoint into tensors of weights. Returns a map:
    tensor of a matrix -> the scales that round the matrix's inputs and outputs."""
    columns = matrix_columns(config)

    def inner(module: str) -> str:
        return split_prefix(without_wrappers(module))[1]

    return with_scales(
        opened,
        lambda module: columns.get(inner(module)),
        is_read=lambda module: not is_tower(without_wrappers(module), config.family),
    )
