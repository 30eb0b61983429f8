"""Rewards for ddpo from photography: colourfulness and sharpness."""
