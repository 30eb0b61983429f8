import os
from pathlib import Path

import pytest
from hypothesis import settings

from ddpo_rewards.testing import example_images

settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("untimed")


@pytest.fixture
def pictures():
    """Four small pictures, uint8 [32, 32, 3]."""
    return example_images(32)


@pytest.fixture(scope="session")
def test_data():
    """The folder of published weights and images, which is not part of the repository."""
    beside = Path(__file__).parents[4] / "shared" / "data"
    folder = Path(os.environ.get("DDPO_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no published weights here: set DDPO_TEST_DATA to their folder")
    return folder
