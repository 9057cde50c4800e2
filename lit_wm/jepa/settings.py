"""The settings of the JEPA family's parts, and what fits together."""

from __future__ import annotations

from dataclasses import dataclass

from lit_wm.errors import UserError, check_bounds, check_choice, check_shares, refuse_given
from lit_wm.jepa.objective import DISTANCES

TASKS = ("frames", "image", "video")
ENCODERS = ("vit", "convolution")
POOLS = ("none", "mean", "class")
PREDICTORS = ("tokens", "conditional", "recurrent", "perceptron", "linear")
TARGETS = ("ema", "stop_gradient", "online", "pixels")
SAMPLES = ("batch", "batch_and_time", "first_frame")


@dataclass(frozen=True)
class EncoderSettings:
    """Sizes are small by default, to learn in minutes on a CPU; the papers' are beside them.

    Args:
        kind: ``vit`` (all papers), or ``convolution``: one vector from strided convolutions, for experiments of seconds.
        patch: side of a patch in pixels (I-JEPA 14 or 16 at 224 x 224; 8 keeps 64 places on 64 x 64).
        dim: width of a token or vector (ViT-tiny 192).
        depth: blocks (12).
        heads: attention heads (3 at ViT-tiny, 12 at ViT-B).
        frames: length of a clip in the task ``video`` (V-JEPA 16).
        tubelet: frames in a token there (V-JEPA 2).
        pool: ``none``: a token for each patch; ``mean`` or ``class``: one vector a frame (LeWM: a class token). Task ``frames``.
        projector: hidden width of a perceptron with batch norm behind the vector (LeWM 2048); 0: none.
        widths: channels of the convolutions, each of which halves the picture.
        hidden: width of the linear layer behind them.
    """

    kind: str = "vit"
    patch: int = 8
    dim: int = 64
    depth: int = 3
    heads: int = 4
    frames: int = 16
    tubelet: int = 2
    pool: str = "none"
    projector: int = 0
    widths: tuple[int, ...] = (16, 32, 32)
    hidden: int = 128


@dataclass(frozen=True)
class PredictorSettings:
    """Of the predictor. ``image`` and ``video`` read dim, depth and heads alone.

    Args:
        kind: in the task ``frames``: ``tokens``, V-JEPA 2-AC's frame-causal transformer over patch tokens; ``conditional``, LeWM's over
            vectors, modulated by the actions; ``recurrent``, PLDM's GRU cell; ``perceptron`` over the last ``history`` vectors and the
            action; ``linear``, z + W a: no predictor to speak of.
        dim: width inside (the papers 384; LeWM 192).
        depth: blocks (6 to 12; V-JEPA 2-AC 24, LeWM 6), or hidden layers.
        heads: attention heads; of ``tokens`` at least 6 wide, for the rotary positions.
        head_width: of ``conditional`` (LeWM 64).
        mlp: hidden width of the blocks of ``conditional`` (LeWM 2048).
        projector: hidden width of a perceptron with batch norm behind ``conditional`` (LeWM 2048); 0: none.
        dropout: of ``conditional`` (LeWM .1).
        tile_actions: of ``tokens``: also add the action to every patch token of its frame, as DINO-WM does; False as V-JEPA 2-AC.
        history: frames seen together (V-JEPA 2-AC 8, LeWM and DINO-WM 3; ``recurrent`` and ``linear`` see one).
        rollout_steps: predictions fed back in training, as ``auto_steps`` of V-JEPA 2-AC (2); 1 is teacher forcing alone.
    """

    kind: str = "tokens"
    dim: int = 64
    depth: int = 3
    heads: int = 4
    head_width: int = 64
    mlp: int = 256
    projector: int = 0
    dropout: float = 0.0
    tile_actions: bool = False
    history: int = 3
    rollout_steps: int = 2


@dataclass(frozen=True)
class TargetSettings:
    """What is predicted.

    Args:
        kind: ``ema``, a moving average of the encoder; ``stop_gradient``, the encoder itself, without gradient; ``online``, with
            gradient (LeWM, PLDM; alone, the arm that collapses); ``pixels``, the hidden patches themselves (MAE; ``image`` and
            ``video``).
        momentum_start: of the average at the first update (I-JEPA .996, V-JEPA .998, V-JEPA 2 a constant .99925).
        momentum_end: approached by the last one (1).
        span: the schedule of the momentum is drawn for so many times the run's updates (V-JEPA 1.25: it ends short of the end).
        normalise: tokens have mean 0 and variance 1: targets (I-JEPA, V-JEPA), and in the task ``frames`` also what enters and leaves
            the predictor (V-JEPA 2-AC). LeWM and PLDM: false.
    """

    kind: str = "ema"
    momentum_start: float = 0.996
    momentum_end: float = 1.0
    span: float = 1.0
    normalise: bool = True


@dataclass(frozen=True)
class RegularizerSettings:
    """Weights of what keeps representations apart (:mod:`lit_wm.jepa.regularizers`); 0, the default, as in the EMA papers.

    Args:
        variance: of VICReg's hinge (PLDM 2.2, eb_jepa 16).
        covariance: (PLDM 13, eb_jepa 8).
        variance_time: the hinge over the moments of each clip (PLDM .19); task ``frames``, as all that follow.
        covariance_time: (PLDM .7).
        smoothness: (PLDM .5, eb_jepa 12).
        inverse_dynamics: of the squared error with which two neighbouring representations tell the action between them (PLDM 2).
        sigreg: (LeWM .09).
        slices: random directions of SIGReg (1,024).
        samples: what variance, covariance and SIGReg take for their samples: the ``batch``, each moment apart (LeWM, stable-worldmodel);
            ``batch_and_time`` together; the ``first_frame`` of every clip alone (PLDM).
    """

    variance: float = 0.0
    covariance: float = 0.0
    variance_time: float = 0.0
    covariance_time: float = 0.0
    smoothness: float = 0.0
    inverse_dynamics: float = 0.0
    sigreg: float = 0.0
    slices: int = 1024
    samples: str = "batch"


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses in the task ``frames``.

    Args:
        distance: between prediction and target: ``l1`` (V-JEPA, V-JEPA 2), ``l2`` (half the square) or ``smooth_l1`` (I-JEPA).
        teacher_forcing: of the distance of representations predicted from true frames (PLDM: 0).
        rollout: of those predicted from predictions.
        next_pixels: of the squared error of the next frame, drawn from the prediction: a rival that predicts pixels.
        current_pixels: of the squared error of the current frame, drawn from its representation: reconstruction.
        pixel_widths: channels of the decoder's transposed convolutions, where frames are vectors.
    """

    distance: str = "l1"
    teacher_forcing: float = 1.0
    rollout: float = 1.0
    next_pixels: float = 0.0
    current_pixels: float = 0.0
    pixel_widths: tuple[int, ...] = (32, 32, 16)


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW; warm-up, then a cosine (I-JEPA, ``init_opt``).

    Args:
        lr: peak learning rate (I-JEPA 1e-3 at batch 2,048, V-JEPA 6.25e-4, LeWM 5e-5; V-JEPA 2-AC 4.25e-4 at batch 256).
        start_lr: where the warm-up begins (I-JEPA and V-JEPA 2e-4).
        final_lr: at the end of the cosine (I-JEPA 1e-6).
        warmup_steps: updates of linear warm-up (I-JEPA 40 epochs).
        weight_decay: of matrices; biases and other 1-D parameters are not decayed (I-JEPA .04).
        final_weight_decay: it rises along a cosine to this (I-JEPA .4); None: it is constant (V-JEPA 2).
        span: schedules are drawn for so many times the run's updates (V-JEPA 1.25).
        steps: updates that the schedules take for the run's; None: as many as the trainer makes.
    """

    lr: float = 1e-3
    start_lr: float = 0.0
    final_lr: float = 1e-6
    warmup_steps: int = 100
    weight_decay: float = 0.04
    final_weight_decay: float | None = None
    span: float = 1.0
    steps: int | None = None


VIT_ONLY = ("patch", "depth", "heads", "pool", "projector")
CONVOLUTION_ONLY = ("widths", "hidden")
READ = {  # what each kind of predictor reads
    "tokens": ("dim", "depth", "heads", "tile_actions", "history", "rollout_steps"),
    "conditional": ("dim", "depth", "heads", "head_width", "mlp", "projector", "dropout", "history", "rollout_steps"),
    "recurrent": ("dim", "rollout_steps"),
    "perceptron": ("dim", "depth", "history", "rollout_steps"),
    "linear": ("rollout_steps",),
    "masked": ("dim", "depth", "heads"),
}
ONE_FRAME = ("recurrent", "linear")  # predictors that see the present alone


def check_settings(
    task: str,
    encoder: EncoderSettings,
    predictor: PredictorSettings,
    target: TargetSettings,
    regularizers: RegularizerSettings,
    loss: LossSettings,
    optimizer: OptimizerSettings,
) -> None:
    """Refuse names that do not exist, numbers that cannot work, and settings that nothing would read.

    Raises:
        UserError: names the first.
    """
    check_choice("task of the jepa model", task, TASKS)
    check_choice("encoder.kind of the jepa model", encoder.kind, ENCODERS)
    check_choice("encoder.pool of the jepa model", encoder.pool, POOLS)
    check_choice("predictor.kind of the jepa model", predictor.kind, PREDICTORS)
    check_choice("target.kind of the jepa model", target.kind, TARGETS)
    check_choice("regularizers.samples of the jepa model", regularizers.samples, SAMPLES)
    check_choice("loss.distance of the jepa model", loss.distance, tuple(DISTANCES))
    _check_numbers(encoder, predictor, target, regularizers, loss, optimizer)
    if target.kind != "ema":
        refuse_given(
            "jepa model's target", target, ("momentum_start", "momentum_end", "span"), f"kind is {target.kind}"
        )
    if encoder.kind == "convolution":
        refuse_given("jepa model's encoder", encoder, VIT_ONLY, "kind is convolution")
    else:
        refuse_given("jepa model's encoder", encoder, CONVOLUTION_ONLY, "kind is vit")
    if encoder.pool == "none":
        refuse_given("jepa model's encoder", encoder, ("projector",), "pool is none")
    if task != "video":
        refuse_given("jepa model's encoder", encoder, ("frames", "tubelet"), f"task is {task}")
    if task == "frames":
        _check_frames(encoder, predictor, target)
    else:
        _check_masked(task, encoder, predictor, regularizers, loss)


def _check_numbers(
    encoder: EncoderSettings,
    predictor: PredictorSettings,
    target: TargetSettings,
    regularizers: RegularizerSettings,
    loss: LossSettings,
    optimizer: OptimizerSettings,
) -> None:
    sizes = dict.fromkeys(("patch", "dim", "heads", "frames", "tubelet", "hidden"), 1) | {"depth": 0, "projector": 0}
    check_bounds("jepa model's encoder", vars(encoder), sizes)
    sizes = dict.fromkeys(("dim", "heads", "head_width", "mlp", "history", "rollout_steps"), 1)
    check_bounds("jepa model's predictor", vars(predictor), sizes | {"depth": 0, "projector": 0})
    check_shares("jepa model's predictor", {"dropout": predictor.dropout})
    check_bounds("jepa model's target", vars(target), {"momentum_start": 0}, positive=("span",))
    if not target.momentum_start <= target.momentum_end <= 1:
        raise UserError(
            f"the momentum of the jepa model's target goes from {target.momentum_start} to {target.momentum_end}: it must rise, to 1 at most"
        )
    weights = [name for name in vars(regularizers) if name not in ("slices", "samples")]
    check_bounds("jepa model's regularizers", vars(regularizers), dict.fromkeys(weights, 0) | {"slices": 1})
    check_bounds(
        "jepa model's loss",
        vars(loss),
        dict.fromkeys([name for name in vars(loss) if name not in ("distance", "pixel_widths")], 0),
    )
    least = dict.fromkeys(("start_lr", "final_lr", "warmup_steps", "weight_decay", "final_weight_decay"), 0) | {
        "steps": 1
    }
    check_bounds("jepa model's optimizer", vars(optimizer), least, positive=("lr", "span"))


def _check_frames(encoder: EncoderSettings, predictor: PredictorSettings, target: TargetSettings) -> None:
    unread = [name for name in vars(predictor) if name not in ("kind", *READ[predictor.kind])]
    refuse_given("jepa model's predictor", predictor, unread, f"kind is {predictor.kind}")
    if target.kind == "pixels":
        raise UserError(
            "target.kind pixels of the jepa model hides patches (task image or video): give loss.next_pixels"
        )
    if predictor.kind != "tokens" and encoder.kind == "vit" and encoder.pool == "none":
        raise UserError(
            f"predictor.kind {predictor.kind} of the jepa model takes one vector a frame: give encoder.pool mean or class"
        )
    if predictor.kind == "tokens" and (encoder.kind == "convolution" or encoder.pool != "none"):
        raise UserError("predictor.kind tokens of the jepa model takes a token for each patch: give encoder.pool none")
    if predictor.kind in ("tokens", "conditional") and predictor.rollout_steps > predictor.history:
        raise UserError(
            f"predictor.rollout_steps is {predictor.rollout_steps}: choose 1 to history = {predictor.history}"
        )


def _check_masked(
    task: str,
    encoder: EncoderSettings,
    predictor: PredictorSettings,
    regularizers: RegularizerSettings,
    loss: LossSettings,
) -> None:
    why = f"task is {task}"
    if encoder.kind != "vit" or encoder.pool != "none":
        raise UserError(f"task {task} of the jepa model needs encoder.kind vit and a token for each patch (pool none)")
    unread = [name for name in vars(predictor) if name not in READ["masked"]]
    refuse_given("jepa model's predictor", predictor, unread, why)
    refuse_given("jepa model's loss", loss, [name for name in vars(loss) if name != "distance"], why)
    over_time = ("variance_time", "covariance_time", "smoothness", "inverse_dynamics", "samples")
    refuse_given("jepa model's regularizers", regularizers, over_time, why)
