"""The systemd unit: written, installed and removed again. Nothing here knows what the worker does."""
