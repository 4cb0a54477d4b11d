"""The OpenAI-compatible server and the engines behind it; runs on a device that has no torch."""
