"""Pipelines of transformers and metrics as torchmetrics has them are rewards, through a factory of one line."""

import numpy as np
import pytest
import torch

from ddpo_rewards import Reward, RewardError, RewardSpec
from ddpo_rewards.adapters import metric_reward, pipeline_reward
from ddpo_rewards.reward import adapt, needed_data
from ddpo_rewards.testing import assert_conforms, example_images


def reward_of(function):
    spec = RewardSpec(name="adapted", factory="x:x", needs=needed_data(function, "adapted"))
    return Reward(spec, adapt(function, "adapted"))


@pytest.fixture(scope="module")
def classifier():
    """A pipeline with a tiny network of random weights and seven labels: more than it gives unless asked."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

    labels = {i: name for i, name in enumerate(["cat", "dog", "fox", "owl", "bee", "ant", "cow"])}
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        id2label=labels, label2id={name: i for i, name in labels.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    network = ViTForImageClassification(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    return pipeline("image-classification", model=network, image_processor=processor, device="cpu")


def test_a_pipelines_label_is_a_reward(classifier):
    from PIL import Image

    images = example_images(24)
    labels = ["cat", "dog", "fox", "owl", "bee", "ant", "cow"]
    scores = np.array([reward_of(pipeline_reward(classifier, label=label))(images).scores for label in labels])
    assert scores.sum(axis=0) == pytest.approx(np.ones(4), abs=1e-5)  # probabilities of all labels
    for image, own in zip(images, scores.T, strict=True):
        best = classifier(Image.fromarray(image))[0]
        assert labels[int(own.argmax())] == best["label"]
        assert own.max() == pytest.approx(best["score"], abs=1e-5)
    assert_conforms(reward_of(pipeline_reward(classifier, label="fox", batch_size=3)))


def test_a_label_that_is_none_is_refused_with_those_there_are(classifier):
    with pytest.raises(RewardError, match="no label 'wolf'; it has ant, bee, cat, cow, dog, fox, owl"):
        reward_of(pipeline_reward(classifier, label="wolf"))(example_images(16))
    with pytest.raises(RewardError, match="want a list of labels with their scores"):
        reward_of(pipeline_reward(lambda *_, **__: ["text"] * 4, label="wolf"))(example_images(16))


class Metric(torch.nn.Module):
    """A metric as torchmetrics has them: one number, the mean of all since the last reset."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.seen = kind, []

    def reset(self):
        self.seen = []

    def forward(self, *args):
        images, *texts = args
        assert images.dtype == (torch.uint8 if self.kind == "bytes" else torch.float32)
        self.seen += images.float().mean((1, 2, 3)).tolist()
        if texts:
            self.seen[-1] += len(texts[0][0])
        return torch.tensor(sum(self.seen) / len(self.seen))


def test_a_metric_is_asked_image_by_image():
    pictures = [np.full((4, 4, 3), level, np.uint8) for level in (0, 51, 255)]
    reward = reward_of(metric_reward(Metric("unit"), prompts=False, as_bytes=False))
    assert reward(pictures).scores.tolist() == pytest.approx([0, 0.2, 1])
    lower = reward_of(metric_reward(Metric("bytes"), prompts=True, as_bytes=True, sign=-1.0))
    assert lower.spec.needs == {"prompts"}
    assert lower(pictures, ["a", "bc", ""]).scores.tolist() == pytest.approx([-1, -53, -255])
    assert_conforms(reward)
    with pytest.raises(RewardError, match="want one number for one image"):
        reward_of(metric_reward(Several(), prompts=False, as_bytes=False))(pictures)


class Several(Metric):
    def __init__(self):
        super().__init__("unit")

    def forward(self, images):
        return torch.zeros(2)


def test_torchmetrics_own_is_a_reward():
    image = pytest.importorskip("torchmetrics.image")
    pictures = example_images(16)
    scores = reward_of(metric_reward(image.TotalVariation(), prompts=False, as_bytes=False, sign=-1.0))(pictures).scores
    for picture, score in zip(pictures, scores, strict=True):
        tensor = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
        across, down = (tensor.diff(dim=dim).abs().sum() for dim in (2, 3))
        assert score == pytest.approx(-float(across + down), rel=1e-5)
