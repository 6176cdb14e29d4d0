"""``vbatch serve``: OpenAI's /v1/files and /v1/batches on the same queue, in a process without vLLM.

A route parses, calls one operation of ``vbatch.batches`` and renders; nothing of the store is known here. The extra
``serve`` is imported only inside this package, and this package only when the command runs.
"""
