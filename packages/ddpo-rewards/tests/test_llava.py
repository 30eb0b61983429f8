"""BERTScore on a small real encoder, and a tiny LLaVA with random weights through transformers."""

import shutil

import numpy as np
import pytest
import torch

from ddpo_rewards import RewardError, get_reward
from ddpo_rewards.models.bertscore import load_bert_scorer, recall_baseline, usual_layer
from ddpo_rewards.models.captioner import _tokens_of, encode_questions, transformers_captioner
from ddpo_rewards.testing import assert_conforms, example_images
from ddpo_rewards.weights import find_model

LAYER = 6
ASKED = "is this {prompt} ?"
CANDIDATES = ["a fox riding a bike", "two dogs play chess in the park", "nothing at all to see here"]
REFERENCES = ["The image contains a fox on a bicycle", "The image contains two dogs", "The image contains a whale"]


@pytest.fixture(scope="module")
def scorer(encoder):
    return load_bert_scorer(encoder, layer=LAYER, device="cpu")


def by_hand(encoder, candidate, reference):
    """Zhang et al. 2020, equation 1: greedy matching of contextual embeddings.

    As in the authors' code, special tokens may be matched but are not averaged over.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    def embed(text):
        with torch.inference_mode():
            outputs = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        vectors = outputs.hidden_states[LAYER][0]
        return vectors / vectors.norm(dim=-1, keepdim=True)

    similarity = embed(candidate) @ embed(reference).T
    precision = similarity.max(dim=1).values[1:-1].mean()
    recall = similarity.max(dim=0).values[1:-1].mean()
    return float(precision), float(recall), float(2 * precision * recall / (precision + recall))


def test_bert_scores_are_those_computed_by_hand(scorer, encoder):
    scores = np.stack(scorer(CANDIDATES, REFERENCES)).T
    expected = [by_hand(encoder, *pair) for pair in zip(CANDIDATES, REFERENCES, strict=True)]
    assert scores == pytest.approx(np.array(expected), abs=1e-5)


def test_the_adapter_changes_nothing_where_bert_score_works(scorer, encoder):
    from bert_score import BERTScorer

    reference = BERTScorer(model_type=encoder, num_layers=LAYER, device="cpu", use_fast_tokenizer=True)
    expected = reference.score(CANDIDATES, REFERENCES)
    assert [part.tolist() for part in scorer(CANDIDATES, REFERENCES)] == [part.tolist() for part in expected]


def test_a_blank_scores_zero_and_leaves_the_others_alone(scorer):
    whole = scorer(CANDIDATES, REFERENCES)
    with_blanks = scorer(["", *CANDIDATES, " \n", "a cat"], ["a cat", *REFERENCES, "a cat", ""])
    for part, expected in zip(with_blanks, whole, strict=True):
        assert part.tolist() == pytest.approx([0.0, *expected.tolist(), 0.0, 0.0], abs=1e-6)
    assert [part.tolist() for part in scorer([""], ["a cat"])] == [[0.0]] * 3


def test_a_tokenizer_without_a_limit_gets_one(encoder, tmp_path):
    import json

    # DeBERTa's state: no model_max_length, which transformers reads as 10**30 and bert-score passes to C.
    folder = tmp_path / "unlimited"
    shutil.copytree(encoder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("model_max_length", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    scores = load_bert_scorer(str(folder), layer=LAYER, device="cpu")(["a cat " * 600], ["a cat"])
    assert np.isfinite(scores.recall).all()


def test_baselines_are_those_that_bert_score_ships():
    # rewards.md: recall .5170 for deberta-xlarge-mnli at layer 40, .8315 for roberta-large at layer 17.
    assert recall_baseline("microsoft/deberta-xlarge-mnli") == pytest.approx(0.5170, abs=1e-4)
    assert recall_baseline("roberta-large") == pytest.approx(0.8315, abs=1e-4)
    assert recall_baseline("some/encoder", LAYER) is None


@pytest.mark.parametrize("name", ["t5-and-others", "plain"])
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_what_a_model_is_decides_how_it_is_loaded_and_not_its_path(encoder, tmp_path, name, kind):
    # bert-score loads whatever has "t5" in its name as a T5, and a path is what it is given here.
    folder = tmp_path / name
    shutil.copytree(encoder, folder)
    if kind == "t5":
        from transformers import T5Config, T5EncoderModel

        (folder / "model.safetensors").unlink(missing_ok=True)
        config = T5Config(vocab_size=30522, d_model=32, d_kv=8, d_ff=32, num_layers=LAYER, num_heads=2)
        T5EncoderModel(config).save_pretrained(folder)
    loaded = load_bert_scorer(str(folder), layer=LAYER, device="cpu")
    assert np.isfinite(loaded(CANDIDATES, REFERENCES).recall).all()
    if kind == "bert":
        expected = load_bert_scorer(encoder, layer=LAYER, device="cpu")(CANDIDATES, REFERENCES)
        assert loaded(CANDIDATES, REFERENCES).recall.tolist() == expected.recall.tolist()


@pytest.mark.parametrize("encoder", ["roberta-large", "FacebookAI/roberta-large"])
def test_an_encoder_keeps_its_layer_and_floor_under_its_new_name(encoder):
    # rewards.md: RoBERTa-large, layer 17, recall .8315. The hub has put an owner before the names of its first models.
    assert usual_layer(encoder) == 17
    assert recall_baseline(encoder) == pytest.approx(0.8315, abs=1e-4)
    with pytest.raises(RewardError, match="give it as encoder_layer=NUMBER"):
        usual_layer("somebody/roberta-large")  # the same name, but who knows


def test_an_unknown_encoder_needs_its_layer_and_a_wrong_one_is_refused(encoder):
    with pytest.raises(RewardError, match="give it as encoder_layer=NUMBER"):
        load_bert_scorer(encoder)
    with pytest.raises(RewardError, match="cannot be loaded as a text encoder with 99 layers"):
        load_bert_scorer(encoder, layer=99, device="cpu")


@pytest.mark.parametrize("model", ["./none", "/none/at/all", "~/model", "three/part/name"])
def test_a_model_is_a_folder_or_a_hub_id(model):
    with pytest.raises(RewardError, match="neither a folder nor a hub id"):
        find_model(model)


def test_the_reward_is_recall_with_everything_beside_it(encoder, scorer):
    captions = [CANDIDATES[0], "", CANDIDATES[1], CANDIDATES[2]]
    asked = []

    def captioner(images, questions):
        asked.extend(questions)
        return captions

    reward = get_reward("llava_bertscore", encoder=encoder, encoder_layer=LAYER, device="cpu", captioner=captioner)
    prompts = ["a fox", "a cat", "two {dogs}", "a whale"]
    scores, info = reward(example_images(16), prompts)
    references = [f"The image contains {prompt}" for prompt in prompts]
    expected = scorer(captions, references)
    assert scores.tolist() == expected.recall.tolist() == info["recall"]
    assert scores[1] == 0
    assert info["caption"] == captions
    assert info["empty"] == [False, True, False, False]
    assert info["precision"] == expected.precision.tolist()
    assert info["f1"] == expected.f1.tolist()
    assert asked == ["Answer concisely: what is going on in this image?"] * 4


def test_recall_is_rescaled_by_the_floor_of_the_encoder():
    from ddpo_rewards.builtin.caption_bertscore import BertScoreOfCaption
    from ddpo_rewards.models.bertscore import BertScores

    half = np.array([0.75], np.float32)
    score = BertScoreOfCaption(lambda *_: ["x"], lambda *_: BertScores(half, half, half), "?", "{prompt}", 0.5)
    assert score(example_images(8)[:1], ["a"]).info["rescaled_recall"] == [0.5]  # (0.75 - 0.5) / (1 - 0.5)


def test_a_reference_needs_a_place_for_the_prompt():
    with pytest.raises(RewardError, match=r"has no \{prompt\}"):
        get_reward("llava_bertscore?reference=The+image")


def test_a_batch_of_mixed_lengths_answers_as_single_runs(tiny_llava):
    images = [*example_images(24), example_images(40)[0]]
    questions = ["what ?", "how many cats are there in this image ?", "what is going on ?", "image", "how many ?"]
    single = transformers_captioner(tiny_llava, device="cpu", batch_size=1, max_new_tokens=8)(images, questions)
    batched = transformers_captioner(tiny_llava, device="cpu", batch_size=5, max_new_tokens=8)(images, questions)
    assert batched == single
    assert len(set(single)) > 1
    assert all("<image>" not in answer for answer in single)


@pytest.mark.parametrize("in_template", [True, False])
def test_a_prompt_begins_with_one_begin_token(tiny_llava, in_template):
    # Some chat templates write the token themselves, and tokenizers of the Llama family add one to every text.
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_llava)
    processor.tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    if in_template:
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    pairs = [(image, "how many ?") for image in example_images(24)]
    inputs = encode_questions(processor, pairs)
    assert (inputs["input_ids"] == 1).sum(dim=1).tolist() == [1] * 4
    assert inputs["input_ids"][:, 0].tolist() == [1] * 4


def test_llava_rewards_conform_on_local_models(tiny_llava, encoder):
    local = {"model": tiny_llava, "device": "cpu", "max_new_tokens": 4}
    assert_conforms(get_reward("llava_bertscore", encoder=encoder, encoder_layer=LAYER, **local))
    # Random answers: whatever is said of the first and the third picture is what is wanted, so that scores differ.
    questions = ["how many cats are there ?", "what is going on ?"]
    said = transformers_captioner(tiny_llava, device="cpu", max_new_tokens=4)
    answers = [said([image] * 2, questions) for image in example_images()]
    wanted = [answers[0], ["whale", "whale"], [answers[2][0], "whale"], ["whale", "whale"]]
    metadata = [{"questions": questions, "answers": both} for both in wanted]
    reward = get_reward("llava_vqa", **local)
    assert reward(example_images(), metadata=metadata).scores.tolist() == [1.0, 0.0, 0.5, 0.0]
    assert_conforms(reward, metadata=metadata)


def test_a_vqa_score_is_the_probability_of_the_next_token(tiny_llava):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    # The vocabulary has no "Yes"; two of its words stand in, with the blank's own form of one beside it.
    reward = get_reward("vqascore", model=tiny_llava, device="cpu", batch_size=3, yes="cats", no="many", question=ASKED)
    images, prompts = example_images(24), ["cats", "what is going on ?", "{image}", "cats"]
    scores, info = reward(images, prompts)
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava).eval()
    processor = AutoProcessor.from_pretrained(tiny_llava)
    vocabulary = processor.tokenizer.get_vocab()
    for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        inputs = encode_questions(processor, [(image, f"is this {prompt} ?")])
        with torch.inference_mode():
            probabilities = model(**inputs).logits[0, -1].float().softmax(-1)
        assert scores[index] == pytest.approx(float(probabilities[vocabulary["cats"]]), abs=1e-6)
        assert info["no"][index] == pytest.approx(float(probabilities[vocabulary["many"]]), abs=1e-6)
    assert len(set(scores.tolist())) == 4
    assert_conforms(reward)


def test_what_is_no_single_token_cannot_be_judged(tiny_llava):
    with pytest.raises(RewardError, match="'Yes' is no single token of"):
        get_reward("vqascore", model=tiny_llava, device="cpu")
    with pytest.raises(RewardError, match=r"has no \{prompt\}"):
        get_reward("vqascore?question=Yes%3F")


def test_an_answer_is_its_token_with_and_without_a_blank_before_it():
    from types import SimpleNamespace

    vocabulary = {"Yes": 3, "yes": 4, "\u0120Yes": 5, "\u2581Yes": 6, "Yesterday": 7}
    assert _tokens_of("Yes", SimpleNamespace(get_vocab=lambda: vocabulary), "x") == [3, 5, 6]


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory):
    """A model of the default captioner's class, Qwen3-VL, of random weights: images of any size are many tokens."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    places = {
        "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
    }  # fmt: skip
    spoken = ["what", "is", "in", "this", "image", "how", "many", "cats", "?", "Yes", "No"]
    words = ["<pad>", "<end>", "<unk>", *places.values(), *spoken]
    vocabulary = {word: i for i, word in enumerate(words)}
    base = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=base, eos_token="<end>", pad_token="<pad>", unk_token="<unk>", extra_special_tokens=places
    )
    small = {"hidden_size": 32, "intermediate_size": 64}
    text = {
        **small, "vocab_size": len(words), "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    vision = {
        **small, "depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    ids = {f"{name}_id": vocabulary[token] for name, token in places.items()}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    torch.manual_seed(0)
    model = transformers.Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    patches = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<|vision_start|> <|image_pad|> <|vision_end|> {% else %}{{ c['text'] }}{% endif %}{% endfor %} <end>"
        "{% endfor %}"
    )
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(
            **patches, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(**patches),
        chat_template=template,
    )
    folder = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_the_class_of_the_default_captioner_answers_in_a_batch_as_alone(tiny_qwen, encoder):
    images = [*example_images(24), example_images(40)[0]]
    questions = ["what ?", "how many cats in this image ?", "what is this ?", "image", "how many ?"]
    options = {"device": "cpu", "max_new_tokens": 6}
    alone = transformers_captioner(tiny_qwen, batch_size=1, **options)(images, questions)
    assert transformers_captioner(tiny_qwen, batch_size=5, **options)(images, questions) == alone
    assert len(set(alone)) > 1
    assert_conforms(get_reward("vqascore", model=tiny_qwen, device="cpu", question="is this {prompt} ?", batch_size=3))
    local = {"model": tiny_qwen, "device": "cpu", "max_new_tokens": 4}
    assert_conforms(get_reward("vqa_accuracy", **local))
    assert_conforms(get_reward("caption_bertscore", encoder=encoder, encoder_layer=LAYER, **local))


def test_the_default_captioner_is_the_modern_one_and_llava_goes_by_its_name():
    from ddpo_rewards import list_rewards
    from ddpo_rewards.models import CAPTIONER, LLAVA

    listed = list_rewards()
    for name in ("caption_bertscore", "vqa_accuracy", "vqascore"):
        assert listed[name].weights[0] == CAPTIONER
    for name in ("llava_bertscore", "llava_vqa"):
        assert listed[name].weights[0] == LLAVA


def test_a_folder_that_is_no_llava_is_refused(encoder, tmp_path):
    for folder in (encoder, str(tmp_path)):
        with pytest.raises(RewardError, match="cannot be loaded as an image-text model"):
            transformers_captioner(folder, device="cpu")
