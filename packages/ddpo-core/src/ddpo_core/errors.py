"""Errors whose text is one line for the person at the keyboard: what was got, what was wanted, what to do."""


class DDPOError(ValueError):
    """Something the user gave cannot be used; the text says what to do."""


class CheckpointError(DDPOError):
    """A checkpoint is missing, damaged, of another model, or could not be written."""


class NonFiniteError(DDPOError):
    """A loss, gradient, parameter, image or score is NaN or infinite; the state before it is intact."""


class ProcessError(DDPOError):
    """Another process of a run has failed; the text is that of its own error."""


class ScoreError(DDPOError):
    """A reward returned something that is not one finite number per image."""
