"""The scorecard in TensorBoard: the same tags for every route, one folder per run, and a layout that puts runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from lit_wm.evaluation.judge import RunScores
from lit_wm.evaluation.scorecard import Scorecard


def write(card: Scorecard, report: str, sheets: Mapping[str, Path], codes: Mapping[str, Path], folder: Path) -> None:
    """Write event files: ``folder/RUN`` per run, and in ``folder`` itself the layout, the report and the pictures.

    Scalars stand under ``scorecard/<tag>`` at the run's number of updates, and under ``horizon/<measure>/...`` as curves
    whose x-axis is the horizon k. Event files of an earlier scorecard, of whichever runs, are replaced.

    Args:
        card: what was measured.
        report: the page of it.
        sheets: tag -> picture file of all runs together.
        codes: run -> picture file of what its codes do.
        folder: where to.
    """
    _clear(folder)
    for run in card.runs:
        with SummaryWriter(str(folder / run.name)) as writer:
            _write_run(writer, run)
            if run.name in codes:
                _write_picture(writer, "codes/what_each_does", codes[run.name], _step(run))
    with SummaryWriter(str(folder)) as writer:
        writer.add_custom_scalars(layout(card))
        writer.add_text("scorecard", report)
        for tag, path in sheets.items():
            _write_picture(writer, tag, path, 0)


def _write_picture(writer: SummaryWriter, tag: str, path: Path, step: int) -> None:
    """The file as it is: an animation stays one."""
    with Image.open(path) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def _step(run: RunScores) -> int:
    return int(run.facts.get("updates") or 0)


def layout(card: Scorecard) -> dict[str, dict[str, list]]:
    """Custom-scalars layout: category -> chart -> what it draws."""
    groups = dict.fromkeys(t.split("/")[2] for run in card.runs for t in run.numbers if t.startswith("state_skill/"))

    def chart(*tags: str) -> list:
        return ["Multiline", [f"^{tag}$" for tag in tags]]

    return {
        "State by horizon": {
            **{f"skill, {group}": chart(f"horizon/state_skill/{group}") for group in groups},
            **{f"R2 less persistence, {group}": chart(f"horizon/state_minus_persistence/{group}") for group in groups},
        },
        "Frames by horizon": {
            "PSNR, common decoder and copy": chart("horizon/psnr_common", "horizon/psnr_copy"),
            "PSNR, own decoder and copy": chart("horizon/psnr_native", "horizon/psnr_copy"),
            "SSIM, common decoder and copy": chart("horizon/ssim_common", "horizon/ssim_copy"),
        },
        "Control": {
            "delta-PSNR, codes and actions": chart("scorecard/delta_psnr/k4/codes", "scorecard/delta_psnr/k4/actions"),
            "transfer accuracy": chart(
                "scorecard/codes/transfer_accuracy", "scorecard/codes/transfer_accuracy_shuffled"
            ),
            "counterfactual accuracy": chart(
                "scorecard/control/counterfactual_accuracy", "scorecard/control/counterfactual_accuracy_shuffled"
            ),
            "leak R2": chart("scorecard/codes/leak_r2", "scorecard/codes/leak_r2_shuffled"),
        },
        "Health": {
            "NMSE": chart("scorecard/collapse/nmse"),
            "retrieval": chart("scorecard/collapse/retrieval", "scorecard/collapse/retrieval_chance"),
            "codes, AMI": chart("scorecard/codes/effect_ami", "scorecard/codes/command_ami"),
        },
        "Cost": {
            "CPU ms per training step": chart("scorecard/cost/train_step_cpu_ms"),
            "imagined frames/s": chart("scorecard/cost/imagined_frames_per_s_b.*"),
        },
    }


def _write_run(writer: SummaryWriter, run: RunScores) -> None:
    for tag, number in run.numbers.items():
        if number.value is None:
            continue
        writer.add_scalar(f"scorecard/{tag}", number.value, _step(run))
        measure, *rest = tag.split("/")
        if rest[0][0] == "k" and rest[0][1:].isdigit():
            writer.add_scalar("/".join(["horizon", measure, *rest[1:]]), number.value, int(rest[0][1:]))


def _clear(folder: Path) -> None:
    """Remove event files, and the folders of runs that held nothing else."""
    for old in [*folder.glob("events.out.tfevents.*"), *folder.glob("*/events.out.tfevents.*")]:
        old.unlink()
        if old.parent != folder and not any(old.parent.iterdir()):
            old.parent.rmdir()
