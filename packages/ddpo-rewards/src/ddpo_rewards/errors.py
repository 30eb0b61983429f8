"""What goes wrong, in one line for a person."""


class RewardError(ValueError):
    """Bad input to a reward, or a reward that broke its contract; the text is one line for a person."""


class ImageError(RewardError):
    """An image that cannot be read; the text names the file and says why."""
