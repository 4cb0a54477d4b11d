"""Measuring an OpenAI-compatible endpoint, ours or not."""
