"""Who holds a GPU's memory, whether there is enough for an engine, and which worker may use the GPU."""
