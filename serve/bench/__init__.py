"""Measuring an OpenAI-compatible endpoint, ours or not."""

from .client import measure

__all__ = ["measure"]
