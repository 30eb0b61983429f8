"""Rewards for generated images, registered as plugins."""
