"""What of a classifier learns: frozen parts keep nothing; adapters are seen, learn and merge."""

import builtins
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from hpm_video.config import ClassifierConfig, FinetuneOptimConfig, RunConfig
from hpm_video.models.adapters import merged, train_less
from hpm_video.models.build import build_classifier
from hpm_video.models.classifier import Classifier
from hpm_video.models.parallel import spread
from hpm_video.models.vit import Block
from hpm_video.runtime.distributed import World
from hpm_video.train.optim import finetune_optimizer

DEPTH = 3
CLIPS = torch.rand(4, 3, 4, 16, 24, generator=torch.Generator().manual_seed(0))[..., :16]
LABELS = torch.tensor([0, 1, 2, 3])


def _config(**settings: Any) -> ClassifierConfig:
    small = {"width": 32, "depth": DEPTH, "heads": 2, "patch_size": 8, "drop_path": 0.5}
    return ClassifierConfig(**{**small, **settings})


def _model(**settings: Any) -> Classifier:
    """One that trains less as the settings say, and before that is the same for all of them."""
    config = _config(**settings)
    torch.manual_seed(0)
    model = build_classifier(config, num_frames=4, crop_size=16, num_classes=5)
    assert isinstance(model, Classifier)
    for value in model.parameters():  # no zeros, which would hide what is missing
        nn.init.normal_(value, std=0.1)
    train_less(model, config)
    return model


def _step(model: Classifier, optimizer: torch.optim.Optimizer) -> None:
    nn.functional.cross_entropy(model(CLIPS), LABELS).backward()
    optimizer.step()
    optimizer.zero_grad()


def _kept_bytes(function: Callable[[], object], *, but: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, but those of weights."""
    weights = {value.untyped_storage().data_ptr() for value in but.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values())


FROZEN = {
    "none": (),
    "embeddings": ("encoder.embed.",),
    1: ("encoder.embed.", "encoder.blocks.0."),
    2: ("encoder.embed.", "encoder.blocks.0.", "encoder.blocks.1."),
    "encoder": ("encoder.",),
}


@pytest.mark.parametrize("freeze", FROZEN)
def test_what_is_frozen_stays_bit_for_bit_and_all_else_moves(freeze: int | str) -> None:
    model = _model(freeze=freeze).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = finetune_optimizer(model, FinetuneOptimConfig(base_lr=0.1, layer_decay=0.5))
    for _ in range(2):
        _step(model, optimizer)
    names = [name for name in before if name.startswith(FROZEN[freeze])] if FROZEN[freeze] else []
    same = [name for name, value in model.state_dict().items() if value.equal(before[name])]
    assert same == names
    # What is frozen has no place in the optimizer: neither rate, decay nor moments
    learnt = {id(value) for group in optimizer.param_groups for value in group["params"]}
    expected = {id(p) for n, p in model.named_parameters() if n not in names}
    assert learnt == expected == {id(p) for p in model.parameters() if p.requires_grad}


def test_rates_of_layers_are_those_of_a_model_that_learns_whole() -> None:
    rates = []
    for freeze in ("none", 2):
        model = _model(freeze=freeze)
        optimizer = finetune_optimizer(model, FinetuneOptimConfig(layer_decay=0.5))
        names = {id(value): name for name, value in model.named_parameters()}
        groups = optimizer.param_groups
        rates.append({names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]})
    assert rates[1].items() < rates[0].items()
    assert rates[1]["encoder.blocks.2.mlp.fc1.weight"] == 0.5 and rates[1]["head.weight"] == 1


def test_what_is_frozen_keeps_nothing_for_the_backward_pass() -> None:
    kept = {}
    for freeze in FROZEN:
        model = _model(freeze=freeze).eval()
        kept[freeze] = _kept_bytes(lambda model=model: model(CLIPS), but=model)
    in_a_block = kept[1] - kept[2]
    assert in_a_block > 4 * CLIPS.numel()
    assert kept["none"] > kept["embeddings"] > kept[1] > kept[2] > kept["encoder"]
    # Of the encoder nothing but what the mean over tokens, of 8, and the norm after it keep
    assert kept["encoder"] < 0.1 * in_a_block


def test_what_is_frozen_draws_nothing() -> None:
    """Two passes in training are the same where all blocks with stochastic depth are frozen."""
    for freeze, is_same in (("encoder", True), (2, False)):
        model = _model(freeze=freeze, drop_path=0.9).train()
        results = {model(CLIPS).sum().item() for _ in range(8)}
        assert (len(results) == 1) == is_same
    assert torch.equal(_model(freeze=2).eval()(CLIPS), _model().eval()(CLIPS))


def test_blocks_that_do_not_learn_are_not_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = Block._run, []
    monkeypatch.setattr(Block, "_run", lambda *given: calls.append(1) or run(*given))
    model = _model(freeze=2)
    spread(model, World(0, 1, torch.device("cpu")), RunConfig(activation_checkpointing=True))
    model(CLIPS).sum().backward()
    assert len(calls) == DEPTH + 1


ADAPTED = {"lora_rank": 4, "lora_alpha": 8}


def test_a_model_with_fresh_adapters_is_the_model() -> None:
    assert torch.equal(_model(**ADAPTED).eval()(CLIPS), _model().eval()(CLIPS))


@pytest.mark.parametrize(
    "targets", [["qkv"], ["proj"], ["fc1"], ["fc2"], ["qkv", "proj", "fc1", "fc2"]]
)
def test_every_adapter_gets_a_gradient_and_changes_the_output(targets: list[str]) -> None:
    """B starts at zero, so that A has a gradient from the second step on."""
    model = _model(**ADAPTED, lora_targets=targets).train()
    optimizer = finetune_optimizer(model, FinetuneOptimConfig(base_lr=0.1))
    adapters = {n: p for n, p in model.named_parameters() if "lora" in n}
    assert len(adapters) == 2 * DEPTH * len(targets)
    torch.manual_seed(1)
    _step(model, optimizer)
    nn.functional.cross_entropy(model.eval()(CLIPS), LABELS).backward()
    for name, value in adapters.items():
        assert value.grad is not None and value.grad.abs().max() > 0, name
    with torch.no_grad():
        reference = model(CLIPS)
        for name, value in adapters.items():
            value.mul_(2)
            assert not torch.equal(model(CLIPS), reference), name
            value.div_(2)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {*adapters, "norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_adapters_are_in_the_blocks_that_freezing_leaves() -> None:
    model = _model(**ADAPTED, freeze=2)
    adapted = {n.split(".lora")[0] for n, _ in model.named_parameters() if "lora" in n}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert adapted == {f"encoder.blocks.2.{name}" for name in layers}
    whole = _kept_bytes(lambda: _model(**ADAPTED).eval()(CLIPS), but=nn.Module())
    assert _kept_bytes(lambda: model.eval()(CLIPS), but=nn.Module()) < 0.5 * whole


def _trained(**settings: Any) -> Classifier:
    model = _model(**ADAPTED, **settings).eval()
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.3)
    return model


def test_merged_is_unmerged() -> None:
    model, plain = _trained(freeze=1), _model()
    before = plain.eval()(CLIPS)
    plain.load_state_dict(merged(model.state_dict(), scale=8 / 4))
    difference = (plain(CLIPS) - model(CLIPS)).abs().max()
    assert difference < 1e-5 < (before - model(CLIPS)).abs().max()


def test_base_weights_stay_bit_for_bit() -> None:
    model = _model(**ADAPTED).train()
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = finetune_optimizer(model, FinetuneOptimConfig(base_lr=0.1))
    for _ in range(2):
        _step(model, optimizer)
    assert len(before) == 2 + DEPTH * 13
    assert all(value.equal(before[n]) for n, value in model.named_parameters() if n in before)


def test_adapters_are_seen_in_lower_precision_and_with_blocks_that_run_twice() -> None:
    model = _trained()
    exact = model(CLIPS)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(CLIPS)
    without = _model().eval()(CLIPS)
    assert (low - exact).abs().max() < 0.2 * (exact - without).abs().max()
    gradients = []
    for recompute in (False, True):
        for block in model.encoder.blocks:
            block.recompute = recompute
        model.zero_grad()
        model(CLIPS).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *gradients))


def test_a_compiled_model_with_adapters_is_one_graph() -> None:
    torch._dynamo.reset()
    model, counter = _trained(freeze=1), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(CLIPS).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(CLIPS).square().sum().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert counter.frame_count == 1 and len(found) == len(expected) > 0
    assert all(map(torch.allclose, found, expected))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": 4}, r"model.freeze \(4\) must be at most 3: the encoder has 3 blocks"),
        ({"freeze": 3, **ADAPTED}, r"model.freeze \(3\) must be at most 2, which leaves one"),
        ({"lora_rank": 33}, r"model.lora_rank \(33\) must be at most 32"),
    ],
)
def test_what_a_model_has_not_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _model(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": "head"}, r"model.freeze \(head\) must be none, embeddings, encoder or a"),
        ({"freeze": 0}, r"model.freeze \(0\) must be"),
        ({"freeze": "encoder", **ADAPTED}, r"model.freeze \(encoder\) must be none, embeddings"),
        ({"lora_rank": -1}, r"model.lora_rank \(-1\)"),
        ({"lora_alpha": 0}, r"model.lora_alpha \(0\)"),
        ({"lora_targets": ["qkv", "q"]}, r"model.lora_targets \(qkv, q\)"),
        ({"lora_targets": ["qkv", "qkv"]}, "each once"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _config(**settings)


@pytest.mark.parametrize(
    "settings", [{"freeze": 2}, {"lora_rank": 4}, {"pooling": "norm_mean"}, {"head_float32": True}]
)
def test_baselines_learn_whole(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be \w+ with model.name=x3d_s"):
        ClassifierConfig(name="x3d_s", **settings)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ValueError, match=r"needs the package peft: pip install 'hpm_video\[lora\]'"
    ):
        _model(**ADAPTED)


@pytest.mark.parametrize(
    ("low", "high"), [((4, 9), (8, 4)), ((4, 8), (8, 5)), ((4, 8), (4,)), ((4, 8), None)]
)
def test_adapters_that_do_not_fit_are_refused(
    low: tuple[int, ...], high: tuple[int, ...] | None
) -> None:
    weights = {
        "a.base_layer.weight": torch.zeros(8, 8),
        "a.lora_A.default.weight": torch.zeros(low),
    }
    if high is not None:
        weights["a.lora_B.default.weight"] = torch.zeros(high)
    with pytest.raises(ValueError, match="adapter of a "):
        merged(weights, 1.0)
