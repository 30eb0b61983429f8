"""Who looks at images and answers questions: a local LLaVA, or a server (see `endpoint`).

Both are one protocol, a function `captioner(images, questions) -> answers`, one answer per pair, order kept.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, TypeAlias

import numpy as np

from ddpo_rewards.compute import BatchSize, Device, DType, choose_device, choose_dtype, map_batches
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import LLAVA
from ddpo_rewards.models.endpoint import endpoint_captioner
from ddpo_rewards.weights import find_model

Captioner: TypeAlias = Callable[[Sequence[np.ndarray], Sequence[str]], list[str]]


def captioner_of(options: Mapping[str, Any]) -> Captioner:
    """The server at `endpoint` where one is named, else the model in this process.

    Args:
        options: those of a reward, by name, of which the ones that the captioner takes are passed on.
    """
    build = transformers_captioner if options["endpoint"] is None else endpoint_captioner
    return build(**{name: options[name] for name in signature(build).parameters if name in options})


def transformers_captioner(
    model: str,
    *,
    revision: str | None = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
) -> Captioner:
    """Run LLaVA (or another image-text model of transformers that has a chat template) in this process.

    Batched, left padded (right padding changes answers), greedy; a batch that does not fit is halved. float16 on a GPU,
    float32 elsewhere. Weights are safetensors of one recorded or given revision; code of the repository is never run.

    Raises:
        RewardError: no such model, or one that is no image-text model.
    """
    import torch

    chosen = choose_device(device)
    folder = find_model(model, revision, published=LLAVA)
    network, processor = _load_model(str(folder), choose_dtype(dtype, chosen))
    network.to(chosen)
    size = BatchSize(batch_size)
    run = partial(_generate, network, processor, max_new_tokens=max_new_tokens)

    def caption(images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        pairs = list(zip(images, questions, strict=True))
        with torch.inference_mode():
            return map_batches(lambda pair: pair, run, pairs, batch_size=size)

    return caption


def encode_questions(processor: Any, pairs: Sequence[tuple[np.ndarray, str]]) -> Any:
    """What a model's `generate` takes, for pairs of an image and a question; padded on the left.

    Some chat templates write the token that begins a text, which tokenizers of the Llama family add to every text: with
    two of them a model answers otherwise, so it is added only where the template has not written it.
    """
    texts = []
    for _, question in pairs:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        conversation = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))
    begin = processor.tokenizer.bos_token
    added = {"add_special_tokens": False} if begin and texts[0].startswith(begin) else {}
    images = [image for image, _ in pairs]
    return processor(images=images, text=texts, return_tensors="pt", padding=True, **added)


def _load_model(folder: str, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        network = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # transformers raises OSError, ValueError, KeyError, and safetensors its own, for what is one thing to a person.
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise RewardError(f"{folder} cannot be loaded as an image-text model: {why}") from error
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    network.eval()
    return network, processor


def _generate(network: Any, processor: Any, batch: list[tuple[np.ndarray, str]], *, max_new_tokens: int) -> list[str]:
    inputs = encode_questions(processor, batch).to(network.device, network.dtype)
    tokens = network.generate(
        **inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=processor.tokenizer.pad_token_id
    )
    answers: list[str] = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]
