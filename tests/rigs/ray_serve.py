"""A real Ray Serve LLM on the CPU: ``python -m tests.rigs.ray_serve MODEL_FOLDER NAME PORT``, in Ray's environment.

It is the deployment that Ray's own documentation shows, with the engine for a CPU. Ray's processes are in sessions of
their own: they end with this one, which is their parent, by Ray's own watch over its driver.
"""

from __future__ import annotations

import sys
import threading

CONTEXT = 1024  # tokens


def main(folder: str, name: str, port: int) -> None:
    """Serve until the process is ended."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(num_cpus=4, include_dashboard=False)  # places, of which Serve and the model take some
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    model = LLMConfig(
        model_loading_config={"model_id": name, "model_source": folder},
        accelerator_config={"kind": "cpu"},
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
        engine_kwargs={
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": CONTEXT,
            "gpu_memory_utilization": 0.1,  # of the machine's memory, for the KV cache
        },
    )
    serve.run(build_openai_app({"llm_configs": [model]}), blocking=False)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
