"""Recover from dead workers: return their chunks to the queue, and end the engine processes that they left behind."""
