"""What ``lit-wm test`` says of an agent that played: every return, their mean with an interval, and a video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from lit_wm.distributed import gather_objects
from lit_wm.evaluation.render import write_gif
from lit_wm.evaluation.statistics import t_interval

VIDEO_STEPS, VIDEO_PIXELS = (
    600,
    192,
)  # a longer episode is shown in so many evenly spaced frames, enlarged to about so many


class EpisodeReport(Callback):
    """Writes ``evaluation.json`` and, where the environment shows pictures, ``episode-N.gif`` into the run.

    The interval is Student's t over episodes: it says how sure the mean is for **this** trained agent.

    Args:
        folder: where to; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.videos: list[np.ndarray] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: None,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep an episode; batches of recorded clips are nothing to this callback."""
        if "episode_return" in batch:
            self.returns.append(float(batch["episode_return"]))
            self.lengths.append(int(batch["episode_length"]))
            if "frames" in batch:
                self.videos.append(batch["frames"][0].permute(0, 2, 3, 1).cpu().numpy())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was kept, and say it in a line."""
        ranks = gather_objects((self.returns, self.lengths))
        if not self.returns or not trainer.is_global_zero:
            return
        self.returns, self.lengths = ([x for rank in ranks for x in rank[i]] for i in range(2))
        self.folder.mkdir(parents=True, exist_ok=True)
        mean, low, high = t_interval(self.returns) if len(self.returns) > 1 else (self.returns[0], None, None)
        report = {
            "environment": {"id": trainer.datamodule.env_id, **trainer.datamodule.env_args},
            "updates": pl_module.updates,
            "seed": trainer.datamodule.settings.seed,
            "episodes": len(self.returns),
            "mean_return": mean,
            "low_95": low,
            "high_95": high,
            "returns": self.returns,
            "lengths": self.lengths,
        }
        path = self.folder / "evaluation.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        interval = f" [{low:.1f}, {high:.1f}]" if low is not None else ""
        print(f"mean return {mean:.1f}{interval} over {len(self.returns)} episodes, all in {path}")
        for number, video in enumerate(self.videos):
            write_gif(enlarged(video), self.folder / f"episode-{number}.gif", milliseconds=50)
            print(f"episode {number} in {self.folder / f'episode-{number}.gif'}")


def enlarged(video: np.ndarray) -> list[Image.Image]:
    """(T,H,W,C) uint8 as pictures, without smoothing; at most ``VIDEO_STEPS`` of them."""
    steps = np.unique(np.linspace(0, len(video) - 1, min(len(video), VIDEO_STEPS)).astype(int))
    zoom = max(1, round(VIDEO_PIXELS / video.shape[1]))
    colour = video if video.shape[-1] == 3 else np.repeat(video[..., :1], 3, -1)
    return [
        Image.fromarray(colour[t]).resize((video.shape[2] * zoom, video.shape[1] * zoom), Image.Resampling.NEAREST)
        for t in steps
    ]
