"""The compiled model: one graph, whatever the schedules do."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from hpm_video.config import LossConfig, MaskingConfig
from hpm_video.method.step import pretrain_step
from hpm_video.method.teacher import Teacher
from hpm_video.models.hpm import HPM, PredictorInput
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import ViTSize

# Long enough, in the decoders, for attention in blocks
GRID = TokenGrid(8, 9, 8)


@pytest.mark.parametrize("predictor_input", ["pixels", "encoded"])
def test_a_step_is_one_graph_and_stays_it_while_hard_ratio_moves(
    predictor_input: PredictorInput,
) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    student = HPM(
        GRID,
        ViTSize(tubelet_size=2, patch_size=4, width=16, depth=1, heads=2),
        decoder_width=16,
        decoder_heads=2,
        decoder_depth=1,
        predictor_input=predictor_input,
    )
    teacher = Teacher(student)
    counter = CompileCounter()
    compiled = torch.compile(student, backend=counter, fullgraph=True)
    clips = torch.rand(2, 3, 16, 36, 32, generator=torch.Generator().manual_seed(0))
    for hard_ratio in (0.1, 0.25, 0.3, 0.5):
        losses = []
        for model in (student, compiled):
            result = pretrain_step(
                model,
                teacher,
                clips,
                grid=GRID,
                masking=MaskingConfig(),
                loss=LossConfig(),
                predictor_input=predictor_input,
                hard_ratio=hard_ratio,
                token_ratio=0.25,
                generator=torch.Generator().manual_seed(0),
                precision="bfloat16",
            )
            result.loss.backward()
            losses.append(result.loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert counter.frame_count == 1
