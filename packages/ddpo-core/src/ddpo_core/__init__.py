"""The trainer: DDPO and RWR as pure functions on PyTorch and diffusers."""
