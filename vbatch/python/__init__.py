"""What ``import vbatch`` offers to programs and notebooks: submit, wait, read; typed, over ``vbatch.batches`` alone."""

from __future__ import annotations

from vbatch.python.handle import Batch, batch, list_batches
from vbatch.python.progress import WaitTimeout
from vbatch.python.submitting import chat, submit

__all__ = ["Batch", "WaitTimeout", "batch", "chat", "list_batches", "submit"]
