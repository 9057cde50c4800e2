"""Two ways to read off two states what the agent did between them, and how well each can be trusted for a run.

* **frames**: both states are drawn, by the model's own decoder or by the common one, and :class:`EffectReader` looks at the
  pictures. What a player sees; needs a decoder that draws the agent.
* **features**: a ridge regression on projected features tells *where* the agent is, and the displacement is named after the
  nearest mean displacement. It is fitted for the place on purpose: features of an imagined state may hold the action itself, and a
  probe for the *effect* would find it there, whether or not the model moved anything. It is fitted on states that were seen, so
  imagined ones must look like them (``state_r2_p0`` asks the same).

Both are tried on states that the model *saw*; the better one there is used for what it imagines, and its accuracy is the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor

from lit_wm.contract import Batch, State, WorldModelContract
from lit_wm.evaluation.effect_reader import EffectReader
from lit_wm.evaluation.obedience import Obedience
from lit_wm.evaluation.probe_decoder import DIMS, PCA_ROWS
from lit_wm.evaluation.projection import fit_projection

PENALTIES = np.logspace(-3, 4, 15)
Decoder = Callable[[Tensor], Tensor]  # (n,D) features -> (n,C,H,W)


class Reading(Protocol):
    """A way to read effects: first look at states, then compare two looks."""

    def look(self, state: State) -> Tensor:
        """States (B,T,...) -> what is seen of them, (B,T,...) on the CPU."""

    def read(self, before: Tensor, after: Tensor) -> Tensor:
        """Two looks (n,...) -> (n,) effect classes."""


class ByFrames:
    """Reads drawn pictures.

    Args:
        model: whose states are drawn.
        decoder: the common decoder, for a model without its own.
        reader: fitted on real frames.
    """

    def __init__(self, model: WorldModelContract, decoder: Decoder, reader: EffectReader) -> None:
        self.model, self.decoder, self.reader = model, decoder, reader

    def look(self, state: State) -> Tensor:
        """(B,T,C,H,W) in [0, 1]."""
        return draw(self.model, state, self.decoder)

    def read(self, before: Tensor, after: Tensor) -> Tensor:
        """(n,) effect classes of pairs of pictures."""
        return self.reader(before, after)


class ByFeatures:
    """Reads the agent's place out of features.

    Args:
        model: whose states are read.
        features_btd: of the training clips, closed loop.
        train: the training clips.
        obedience: says where the agent is in their state, and how far each effect moves it.
    """

    def __init__(self, model: WorldModelContract, features_btd: Tensor, train: Batch, obedience: Obedience) -> None:
        self.model = model
        features, places = features_btd.flatten(0, 1), obedience.places(train).flatten(0, 1)
        rows = torch.linspace(0, len(features) - 1, min(PCA_ROWS, len(features))).long()
        self.projection = fit_projection(features[rows], DIMS)
        known = places.isfinite().all(-1)
        self.ridge = RidgeCV(PENALTIES).fit(self.projection(features[known]).numpy(), places[known].numpy())
        self.classes = torch.tensor(list(obedience.displacement))
        self.displacement = torch.stack(list(obedience.displacement.values())).double()

    def look(self, state: State) -> Tensor:
        """(B,T,A) places of the agent."""
        features = self.model.features(state).float().cpu()
        places = self.ridge.predict(self.projection(features.flatten(0, 1)).numpy())
        return torch.from_numpy(places.reshape(*features.shape[:2], -1))

    def read(self, before: Tensor, after: Tensor) -> Tensor:
        """(n,) classes of the nearest mean displacement."""
        return self.classes[torch.cdist(after - before, self.displacement).argmin(1)]


def readings_of(
    model: WorldModelContract,
    decoder: Decoder,
    reader: EffectReader | str,
    features_btd: Tensor,
    train: Batch,
    obedience: Obedience | str,
) -> dict[str, Reading] | str:
    """Both ways to read a model, or why there is none. Arguments as above."""
    if isinstance(obedience, str):
        return obedience
    if isinstance(reader, str):
        return reader
    by_features = ByFeatures(model, features_btd, train, obedience)
    return {"frames": ByFrames(model, decoder, reader), "features": by_features}


@torch.inference_mode()
def draw(model: WorldModelContract, state: State, decoder: Decoder) -> Tensor:
    """Pictures of states (B,T,...) by the model's own decoder, or by the common one: (B,T,C,H,W) in [0, 1] on the CPU."""
    frames = model.decode(state)
    if frames is None:
        features = model.features(state).float().cpu()
        frames = decoder(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return frames.float().cpu()
