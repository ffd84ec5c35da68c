"""Token maps of a fine-tuned classifier, from its attention: what it looks at in a clip."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from hpm_video.config import ClipConfig, FinetuneConfig
from hpm_video.evaluate.pretrained import Pretrained
from hpm_video.models.build import Classifier
from hpm_video.models.tokens import patchify
from hpm_video.models.vit import Block, finish
from hpm_video.weights.checkpoint import settings_of
from hpm_video.weights.foreign.stored_model import read_model
from hpm_video.weights.load import classifier_of


@dataclass(frozen=True)
class Relevance:
    """A classifier's prediction for a clip, with two maps over its N tokens, (N,) float32.

    name and score: of the class that ``relevance`` explains.
    rollout: share of each token in the mean that the head sees; sums to 1.
    relevance: evidence for the class that reaches the mean from each token through attention; >= 0.
    """

    name: str
    score: float
    rollout: Tensor
    relevance: Tensor


@dataclass(frozen=True)
class Onlooker:
    """A classifier that computes `Relevance` for class ``label``, or for the likeliest class of
    each clip if None. ``classes``: their names."""

    model: Classifier
    classes: tuple[str, ...]
    label: int | None = None

    def __call__(self, clips: Tensor) -> Relevance:
        """Compute it for clips (1, 3, T, H, W) in [0, 1].

        Attention rollout (arXiv 2005.00928): each block passes on its input with weight 1/2, and
        the mean attention of its heads with weight 1/2. Relevance (arXiv 2103.15679, for
        self-attention): the positive part of attention weights times their gradients, averaged over
        heads and accumulated over blocks. Both start at the mean over tokens; those papers start at
        a class token. Blocks are run again one by one, from last to first, so only one block's
        weights (heads x N x N) are in memory.
        """
        model, encoder = self.model, self.model.encoder
        stages: list[tuple[Tensor, ...]] = [(encoder.embedded(patchify(clips, model.grid)),)]
        with torch.no_grad():
            for block in encoder.blocks:
                stages.append(block(*stages[-1]))
        stage = _leaves(stages.pop())
        with torch.enable_grad():
            x, branch = stage  # inputs of a block
            logits = model.of_tokens(finish(x, branch, encoder.norm))[0]
            label = int(logits.argmax()) if self.label is None else self.label
            gradients = torch.autograd.grad(logits[label], stage)
        num_tokens = model.grid.num_tokens
        rollout = relevance = torch.full((num_tokens,), 1 / num_tokens, device=clips.device)
        for block, kept in zip(reversed(encoder.blocks), reversed(stages), strict=True):
            assert isinstance(block, Block)
            stage = _leaves(kept)
            with torch.enable_grad(), _weights_of(block) as weights:
                outputs = block(*stage)
                found = torch.autograd.grad(outputs, [*stage, *weights], gradients)
            gradients, of_weights = found[:-1], found[-1]
            attention = weights[0].detach().float()[0]
            rollout = (rollout + rollout @ attention.mean(dim=0)) / 2
            positive = (attention * of_weights.float()[0]).clamp(min=0).mean(dim=0)
            relevance = relevance + relevance @ positive
        score = model.scores(logits.detach())[label].item()
        # The uniform start carries no information
        return Relevance(self.classes[label], score, rollout, relevance - 1 / num_tokens)


def load_onlooker(
    classifier: str | Path, beside: Pretrained, *, class_name: str | None = None
) -> Onlooker:
    """Load the classifier of a checkpoint or run folder for the clips and tokens of a pre-training.

    Its positions are interpolated if the grids differ. ``class_name``: a name or number; None means
    the likeliest class of each clip. Raises ValueError for a baseline, or an unknown class.
    """
    state = read_model(classifier, kind="finetune").state
    trained = settings_of(state)
    assert isinstance(trained, FinetuneConfig)
    if (name := trained.model.name) != "videomae":
        raise ValueError(f"classifier ({classifier}) must be a VideoMAE model, not {name}")
    known = {**vars(beside.config.data), **vars(beside.config.model)}
    clip = ClipConfig(**{field.name: known[field.name] for field in fields(ClipConfig)})
    model, _, names = classifier_of(state, source=classifier, clip=clip)
    assert isinstance(model, Classifier)
    model.requires_grad_(False).eval().to(beside.student.encoder.mean.device)
    classes = tuple(names or map(str, range(model.num_classes)))
    return Onlooker(model, classes, _number(class_name, classes))


def _number(name: str | None, classes: tuple[str, ...]) -> int | None:
    if name is None or name in classes:
        return None if name is None else classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
    raise ValueError(f"class ({name}) must be one of the classifier's {len(classes)}: {known}")


def _leaves(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().requires_grad_() for tensor in tensors)


@contextmanager
def _weights_of(block: Block) -> Iterator[list[Tensor]]:
    """Capture the attention weights (B, heads, N, N) of a block run inside this context."""
    found: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found.append((q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1))
        return found[-1] @ v

    usual = block.attn.attend
    block.attn.attend = attend
    try:
        yield found
    finally:
        block.attn.attend = usual
