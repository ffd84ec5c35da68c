"""Every setting, its type, default and meaning; `hpm_video.config.settings` reads them.

`schema.setting` declares one with its meaning in ``--help``; `values` has the choices.

Groups by consequence: ``model masking teacher loss data optim`` change results, ``run`` does not
(``run.seed`` and ``run.precision`` excepted).
"""

from hpm_video.config.evaluation import (
    PROBE_KINDS,
    AskConfig,
    ClipConfig,
    EvaluateConfig,
    EvaluationConfig,
    FeaturesConfig,
    PretrainProbeConfig,
    ProbeConfig,
    ProbeJobConfig,
    check_probe_kinds,
)
from hpm_video.config.finetune import (
    AugmentConfig,
    ClassifierConfig,
    FinetuneConfig,
    FinetuneDataConfig,
    FinetuneEvaluationConfig,
    FinetuneOptimConfig,
    MixingConfig,
)
from hpm_video.config.pretrain import (
    LossConfig,
    MaskingConfig,
    ModelConfig,
    PretrainConfig,
    PretrainRunConfig,
    TeacherConfig,
)
from hpm_video.config.shared import DataConfig, EncoderConfig, OptimConfig, RunConfig
from hpm_video.config.study import (
    BaseRunConfig,
    DataSetConfig,
    StudyConfig,
    ToySetConfig,
    VariantConfig,
)

__all__ = [
    "PROBE_KINDS", "AskConfig", "AugmentConfig", "BaseRunConfig", "ClassifierConfig", "ClipConfig",
    "DataConfig", "DataSetConfig", "EncoderConfig", "EvaluateConfig", "EvaluationConfig",
    "FeaturesConfig", "FinetuneConfig", "FinetuneDataConfig", "FinetuneEvaluationConfig",
    "FinetuneOptimConfig", "LossConfig", "MaskingConfig", "MixingConfig", "ModelConfig",
    "OptimConfig", "PretrainConfig", "PretrainProbeConfig", "PretrainRunConfig", "ProbeConfig",
    "ProbeJobConfig", "RunConfig", "StudyConfig", "TeacherConfig", "ToySetConfig", "VariantConfig",
    "check_probe_kinds",
]  # fmt: skip
