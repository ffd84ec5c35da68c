"""Makes what `hpm-video demo` shows: a small model and a clip that it has never seen.

    hpm-video demo --train -o outputs/demo
    python tools/make_demo_model.py outputs/demo/pretrain

The model is the pre-training's student in half precision. Of its settings paths are left out, and
the predictor sees the whole clip. The clip is a toy video of a seed of its own.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from hpm_video.cli.demo_clip import CLIP, MODEL
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.weights.checkpoint import load_checkpoint, without_training
from hpm_video.weights.export.writers import write_output

_SEED = 2  # of the clip; `hpm-video demo --train` takes 0 and 1
_SIDE = 192  # pixels: the model sees it smaller, people look at the page
_VIDEO = "up_00014.mp4"  # the object stays inside, and stands out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder of a pre-training")
    state = without_training(load_checkpoint(parser.parse_args().run, kind="pretrain"))
    state["model"] = {name: weights.half() for name, weights in state["model"].items()}
    config = state["config"]
    config["run"] |= {"output_dir": None, "device": "auto", "precision": "float32"}
    config["data"] |= {"manifest": [], "root": None}
    config["teacher"]["token_ratio"] = 1.0  # training hurries, and shows a quarter
    for line in write_output(state, MODEL, to="safetensors"):
        print(line)
    with tempfile.TemporaryDirectory() as folder:
        toys = {"num_videos": 16, "size": _SIDE, "formats": ("mp4",), "seed": _SEED}
        write_toy_videos(folder, **toys)
        (video,) = Path(folder).glob(f"videos/*/{_VIDEO}")
        shutil.copyfile(video, CLIP)
    print(CLIP)


if __name__ == "__main__":
    main()
