"""Names the smallest extra of the package that brings what is missing."""

from __future__ import annotations

import sys

EXTRAS = {
    "tensorflow": "tensorflow",
    "tf_keras": "tensorflow",
    "tensorflow_model_optimization": "tensorflow",
    "h5py": "tensorflow",
    "ai_edge_litert": "edge",
    "psutil": "edge",
    "zeroconf": "edge",
    "pydantic": "server",
    "prometheus_client": "server",
    "grpc_health": "server",
    "cryptography": "server",
    "grpc_reflection": "server",
    "uvloop": "server",
    "starlette": "page",
    "uvicorn": "page",
    "matplotlib": "report",
    "jinja2": "report",
    "rich": "report",
    "PIL": "images",
    "pandas": "pandas",
    "pyarrow": "tables",
    "psycopg": "postgres",
    "dp_accounting": "privacy",
    "constriction": "range",
    "greenlet": "simulator",
    "ray": "cluster",
    "tensorboardX": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "opentelemetry": "otel",
    "sklearn": "demo",
    "tomli_w": "demo",
}
"""Module that is imported -> the smallest extra that brings it."""

WHOLE = {
    "serve": ("server", "tensorflow"),
    "simulate": ("server", "tensorflow"),
    "Run": ("server", "tensorflow"),
    "sweep": ("sweep",),
    "demo": ("demo",),
    "watch": ("report",),
}
"""Command or function -> the extras that it needs in any case; others need what they import."""

_INCLUDED = {
    "sweep": {"server", "report", "tensorflow"},
    "demo": {"sweep", "privacy", "page", "server", "report", "tensorflow"},
}
"""Extra -> the other extras that it brings."""

_WITHOUT_TENSORFLOW = (3, 14)
"""The first Python for which pyproject.toml leaves TensorFlow out."""


def how_to_install(module: str, use: str = "") -> str:
    """Return the pip command that installs a missing module, and all else that `use` needs.

    `use`: a command, or a function of the Python surface; "" if it is not known.
    """
    extra = EXTRAS.get(module.split(".")[0])
    names = list(WHOLE.get(use, ()))
    brought = set(names).union(*(_INCLUDED.get(name, set()) for name in names))
    if extra is not None and extra not in brought:
        names.append(extra)
    command = f"pip install 'featherfed[{','.join(names)}]'" if names else f"pip install {module}"
    if sys.version_info >= _WITHOUT_TENSORFLOW and "tensorflow" in {*names, *brought}:
        return f"{command}, with Python 3.13 or older: TensorFlow has no build for a newer one"
    return command


def explained(error: ModuleNotFoundError, use: str) -> ModuleNotFoundError:
    """Return the error with what to install, or as it is if a module of featherfed is missing."""
    module = error.name or ""
    if module.split(".")[0] in ("", "featherfed"):
        return error
    return ModuleNotFoundError(
        f"{module} is not installed, and {use} needs it: {how_to_install(module, use)}",
        name=error.name,
    )
