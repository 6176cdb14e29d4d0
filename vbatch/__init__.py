"""Run huge OpenAI Batch files through vLLM on your own GPU, and lose nothing when something fails."""

__version__ = "0.1.0"
