"""Every setting with its type, default and meaning; `hpm_video.config.settings` reads them.

`schema.setting` declares a setting and its meaning in ``--help``; `values` lists the choices.

The groups ``model masking teacher loss data optim`` change results. ``run`` does not, except for
``run.seed`` and ``run.precision``.
"""

from hpm_video.config.evaluation import PROBE_KINDS as PROBE_KINDS
from hpm_video.config.evaluation import AskConfig as AskConfig
from hpm_video.config.evaluation import ClassifyConfig as ClassifyConfig
from hpm_video.config.evaluation import ClipConfig as ClipConfig
from hpm_video.config.evaluation import EmbedConfig as EmbedConfig
from hpm_video.config.evaluation import EvaluateConfig as EvaluateConfig
from hpm_video.config.evaluation import EvaluationConfig as EvaluationConfig
from hpm_video.config.evaluation import FeaturesConfig as FeaturesConfig
from hpm_video.config.evaluation import FrozenEncoderConfig as FrozenEncoderConfig
from hpm_video.config.evaluation import GridConfig as GridConfig
from hpm_video.config.evaluation import PretrainProbeConfig as PretrainProbeConfig
from hpm_video.config.evaluation import ProbeConfig as ProbeConfig
from hpm_video.config.evaluation import ProbeJobConfig as ProbeJobConfig
from hpm_video.config.evaluation import check_probe_kinds as check_probe_kinds
from hpm_video.config.finetune import AugmentConfig as AugmentConfig
from hpm_video.config.finetune import ClassifierConfig as ClassifierConfig
from hpm_video.config.finetune import FinetuneConfig as FinetuneConfig
from hpm_video.config.finetune import FinetuneDataConfig as FinetuneDataConfig
from hpm_video.config.finetune import FinetuneEvaluationConfig as FinetuneEvaluationConfig
from hpm_video.config.finetune import FinetuneOptimConfig as FinetuneOptimConfig
from hpm_video.config.finetune import MixingConfig as MixingConfig
from hpm_video.config.pretrain import LossConfig as LossConfig
from hpm_video.config.pretrain import MaskingConfig as MaskingConfig
from hpm_video.config.pretrain import ModelConfig as ModelConfig
from hpm_video.config.pretrain import PretrainConfig as PretrainConfig
from hpm_video.config.pretrain import PretrainRunConfig as PretrainRunConfig
from hpm_video.config.pretrain import TeacherConfig as TeacherConfig
from hpm_video.config.pretrain import as_then as as_then
from hpm_video.config.schema import SCHEMAS as SCHEMAS
from hpm_video.config.shared import DataConfig as DataConfig
from hpm_video.config.shared import EncoderConfig as EncoderConfig
from hpm_video.config.shared import LabelsConfig as LabelsConfig
from hpm_video.config.shared import OptimConfig as OptimConfig
from hpm_video.config.shared import RunConfig as RunConfig
from hpm_video.config.study import BaseRunConfig as BaseRunConfig
from hpm_video.config.study import DataSetConfig as DataSetConfig
from hpm_video.config.study import StudyConfig as StudyConfig
from hpm_video.config.study import ToySetConfig as ToySetConfig
from hpm_video.config.study import VariantConfig as VariantConfig

SCHEMAS |= {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "probe": ProbeJobConfig,
    "bench ablation": StudyConfig,
}
