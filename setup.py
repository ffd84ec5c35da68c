"""Installs hpm_video; every dependency's exact version is pinned in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ONNX = ["onnx>=1.17", "onnxscript>=0.7"]  # to export to it
TORCHCODEC = ["torchcodec>=0.7"]  # and FFmpeg's libraries on the system
TEST = [
    *ONNX,
    *TORCHCODEC,
    "onnxruntime>=1.20",
    "pytest>=8",
    "pytest-xdist>=3.6.1",
    "selenium>=4.20",
    "transformers>=5",
]

setup(
    name="hpm_video",
    version="0.1.0",
    description="Self-supervised video pre-training by masked autoencoding with hard tube mining",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["hpm_video", "hpm_video.*"]),
    package_data={"hpm_video": ["py.typed"], "": ["assets/*"]},
    install_requires=[
        "av>=17",
        # No wheels for other machines; without it PyAV reads
        "decord>=0.6.0; platform_machine == 'x86_64' and sys_platform == 'linux'",
        "fvcore>=0.1.5.post20221221",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=1.26",
        "omegaconf>=2.4",
        "pytorchvideo>=0.1.5",  # its models alone: its transforms do not import any more
        "pyyaml>=6",
        "safetensors>=0.4.3",
        "scipy>=1.11.1",
        "submitit>=1.5.4",
        "tensorboard>=2.18",
        "timm>=1.0.15",
        "torch>=2.8",
        "torchvision>=0.23",
        "tqdm>=4.66",
    ],
    extras_require={
        "onnx": ONNX,
        "torchcodec": TORCHCODEC,
        "test": TEST,
        "dev": [*TEST, "import-linter>=2.11", "mypy", "ruff"],
    },
    entry_points={"console_scripts": ["hpm-video=hpm_video.cli.main:entry"]},
)
