"""Installs hpm_video; every dependency's exact version is pinned in constraints.txt."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithRecipes(build_py):
    """Puts the recipes of configs/ into the package; an editable installation reads the clone's."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib, "hpm_video", "config", "recipes")
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(ROOT / "configs", place)


ONNX = ["onnx>=1.17", "onnxscript>=0.7"]  # to export to it
HUB = ["huggingface_hub>=1.0"]  # models to and from the Hugging Face Hub
# Its client, and what a database in the run's folder needs
MLFLOW = ["mlflow-skinny>=3.0.1", "sqlalchemy>=2.0.20", "alembic>=1.13"]
TRANSFORMERS = ["transformers>=5"]  # its models, as frozen encoders
TORCHCODEC = ["torchcodec>=0.10"]  # and FFmpeg's libraries on the system
# Clients for https://, s3:// and gs://; the last two choose the version of fsspec
REMOTE = ["aiohttp>=3.11", "s3fs>=2024.2", "gcsfs>=2024.2"]
LORA = ["peft>=0.18"]  # adapters in fine-tuning; from here on it knows transformers 5
DOCS = ["sphinx>=8.1", "myst-parser>=4", "furo>=2024.8.6"]  # the docs as a site
TEST = [
    *ONNX,
    *TORCHCODEC,
    *TRANSFORMERS,
    "aiohttp>=3.11",  # fsspec's client of https://
    "onnxruntime>=1.20",
    "pytest>=8",
    "pytest-xdist>=3.6.1",
    "scikit-learn>=1.6",  # whose average precision ours is compared with
    "selenium>=4.20",
]

setup(
    name="hpm_video",
    version=re.search('__version__ = "(.+)"', (ROOT / "hpm_video/__init__.py").read_text())[1],
    description="Self-supervised video pre-training by masked autoencoding with hard tube mining",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["video", "self-supervised learning", "masked autoencoder", "VideoMAE", "PyTorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    cmdclass={"build_py": BuildWithRecipes},
    python_requires=">=3.10",
    packages=find_packages(include=["hpm_video", "hpm_video.*"]),
    package_data={"hpm_video": ["py.typed"], "": ["assets/*"]},
    install_requires=[
        "av>=17.1",
        # Where it has wheels; elsewhere PyAV reads. Its module is called decord
        "decord2>=3.4.0; sys_platform == 'linux' and python_version < '3.15'"
        " and (platform_machine == 'x86_64' or platform_machine == 'aarch64')",
        "fsspec>=2024.2",  # videos and lists by URL; PyTorch needs it, too
        "fvcore>=0.1.5.post20221221",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=1.26.4",
        "omegaconf>=2.4",
        "pillow>=12.3",  # decodes folders of frames
        "pytorchvideo>=0.1.5",  # its models alone: its transforms do not import any more
        "pyyaml>=6",
        "rich>=13.8",
        "safetensors>=0.4.3",
        "scipy>=1.11.1",
        "submitit>=1.5.4",
        "tensorboard>=2.18",
        "timm>=1.0.15",
        "torch>=2.10",
        "torchvision>=0.25",
    ],
    extras_require={
        "docs": DOCS,
        "hub": HUB,
        "mlflow": MLFLOW,
        "lora": LORA,
        "onnx": ONNX,
        "remote": REMOTE,
        "torchcodec": TORCHCODEC,
        "transformers": TRANSFORMERS,
        "wandb": ["wandb>=0.21"],
        "test": TEST,
        "dev": [*TEST, *DOCS, *HUB, *LORA, *MLFLOW, "import-linter>=2.11", "mypy", "ruff"],
    },
    entry_points={"console_scripts": ["hpm-video=hpm_video.cli.main:entry"]},
)
