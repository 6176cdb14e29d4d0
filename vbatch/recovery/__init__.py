"""What dead workers left: their chunks, and the engine processes that vbatch can prove to be its own."""
