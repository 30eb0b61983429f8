"""Who looks at images and answers questions: an image-text model in this process, or a server (see `endpoint`).

Both are one protocol, a function `captioner(images, questions) -> answers`, one answer per pair, order kept; or
`judge(images, questions) -> probabilities` of answers that are known beforehand.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, TypeAlias

import numpy as np

from ddpo_rewards.compute import BatchSize, Device, DType, choose_device, choose_dtype, map_batches
from ddpo_rewards.errors import RewardError
from ddpo_rewards.images import to_picture
from ddpo_rewards.models import CAPTIONER, LLAVA, quietly
from ddpo_rewards.models.endpoint import endpoint_captioner, endpoint_probabilities
from ddpo_rewards.weights import EMBEDDED, find_model

Captioner: TypeAlias = Callable[[Sequence[np.ndarray], Sequence[str]], list[str]]
Judge: TypeAlias = Callable[[Sequence[np.ndarray], Sequence[str]], np.ndarray]  # [batch, answers], in [0, 1]
_PUBLISHED = {weight.source.removeprefix("hf://"): weight for weight in (CAPTIONER, LLAVA)} | {EMBEDDED: LLAVA}


def captioner_of(options: Mapping[str, Any]) -> Captioner:
    """The server at `endpoint` where one is named, else the model in this process.

    Args:
        options: those of a reward, by name, of which the ones that the captioner takes are passed on.
    """
    build = transformers_captioner if options["endpoint"] is None else endpoint_captioner
    return build(**{name: options[name] for name in signature(build).parameters if name in options})


def judge_of(options: Mapping[str, Any], answers: Sequence[str]) -> Judge:
    """Who says how probable `answers` are: otherwise as `captioner_of`."""
    build = transformers_probabilities if options["endpoint"] is None else endpoint_probabilities
    return build(answers=answers, **{name: options[name] for name in signature(build).parameters if name in options})


def transformers_captioner(
    model: str,
    *,
    revision: str | None = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
) -> Captioner:
    """Run an image-text model of transformers that has a chat template in this process.

    Batched, left padded (right padding changes answers), greedy; a batch that does not fit is halved. float16 on a GPU,
    float32 elsewhere. Weights are safetensors of one recorded or given revision; code of the repository is never run.

    Raises:
        RewardError: no such model, or one that is no image-text model.
    """
    import torch

    size = BatchSize(batch_size)
    network, processor = _load_model(model, revision, device, dtype)
    run = partial(_generate, network, processor, max_new_tokens=max_new_tokens)

    def caption(images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        pairs = list(zip(images, questions, strict=True))
        with torch.inference_mode():
            return map_batches(lambda pair: pair, run, pairs, batch_size=size)

    return caption


def transformers_probabilities(
    model: str,
    *,
    answers: Sequence[str],
    revision: str | None = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: int = 16,
) -> Judge:
    """How probable it is that the model's answer begins with each of `answers`; otherwise as `transformers_captioner`.

    Of the next token, softmax over the whole vocabulary in float32, before anything that generation does to it. An
    answer is the token of that text, together with the one that has a blank before it.

    Raises:
        RewardError: as `transformers_captioner`; or an answer that is no single token of the model.
    """
    import torch

    size = BatchSize(batch_size)
    network, processor = _load_model(model, revision, device, dtype)
    tokens = [_tokens_of(answer, processor.tokenizer, model) for answer in answers]
    run = partial(_next_token, network, processor, tokens=tokens)

    def probabilities(images: Sequence[np.ndarray], questions: Sequence[str]) -> np.ndarray:
        pairs = list(zip(images, questions, strict=True))
        with torch.inference_mode():
            return np.stack(map_batches(lambda pair: pair, run, pairs, batch_size=size))

    return probabilities


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
    # One list per text: some processors take a flat one for a single text's. PIL images, which every processor takes:
    # an array of a picture that Pillow read cannot be written to, which torch warns of.
    images = [[to_picture(image)] for image, _ in pairs]
    return processor(images=images, text=texts, return_tensors="pt", padding=True, **added)


def _load_model(model: str, revision: str | None, device: Device, dtype: DType) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    chosen = choose_device(device)
    precision = choose_dtype(dtype, chosen)
    folder = str(find_model(model, revision, published=_PUBLISHED.get(model)))
    try:
        local: Any = {"local_files_only": True, "trust_remote_code": False}
        with quietly():
            network: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=precision, use_safetensors=True, **local
            )
            processor: Any = AutoProcessor.from_pretrained(folder, **local)
    # transformers raises OSError, ValueError, KeyError, and safetensors its own, for what is one thing to a person.
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise RewardError(f"{folder} cannot be loaded as an image-text model: {why}") from error
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return network.to(chosen).eval(), processor


def _generate(network: Any, processor: Any, batch: list[tuple[np.ndarray, str]], *, max_new_tokens: int) -> list[str]:
    inputs = encode_questions(processor, batch).to(network.device, network.dtype)
    tokens = network.generate(
        **inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=processor.tokenizer.pad_token_id
    )
    answers: list[str] = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def _next_token(
    network: Any, processor: Any, batch: list[tuple[np.ndarray, str]], *, tokens: Sequence[Sequence[int]]
) -> Sequence[np.ndarray]:
    inputs = encode_questions(processor, batch).to(network.device, network.dtype)
    # By generate and not by a call of the network: it knows which positions a padded text has.
    output = network.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    probabilities = output.logits[0].float().softmax(-1).cpu().numpy()
    return list(np.stack([probabilities[:, list(own)].sum(-1) for own in tokens], axis=-1))


def _tokens_of(answer: str, tokenizer: Any, model: str) -> list[int]:
    """The tokens that are this text, as it is and after a blank, in byte-level and in SentencePiece vocabularies."""
    vocabulary = tokenizer.get_vocab()
    found = [vocabulary[form] for form in (answer, f"\u0120{answer}", f"\u2581{answer}") if form in vocabulary]
    if not found:
        raise RewardError(f"{answer!r} is no single token of {model}; ask for an answer that is")
    return found
