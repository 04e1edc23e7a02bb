"""Train the demonstration checkpoint from scratch: `python -m training.train --out DIR`.

Stage A teaches the vision tower alone to name what is under each token; stage B teaches the whole model to answer, with
the labels of stage A as a fading second loss. The budget is in steps, every step draws its data from its own seed, and
a run that was stopped resumes from its last save with the same command, so that a run can be repeated. When it ends,
the checkpoint folder is written to DIR/checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Qwen2TokenizerFast, Qwen3VLForConditionalGeneration

from training.architecture import HIDDEN_SIZE, build_model
from training.batches import (
    CLASSES,
    EASY_MIX,
    REGRESSIONS,
    TRAINING_MIX,
    CaptionBatch,
    TokenWriter,
    VisionBatch,
    caption_batch,
    normalized,
    vision_batch,
)
from training.export import export_checkpoint
from training.fast_cpu import fast_operations
from training.muon import Muon
from training.vocabulary import train_tokenizer, wrap_tokenizer

TRAINING_STREAM = 0
"""First word of every step's seed sequence; rendered clips use another (see `reelscribe.demo.render`)."""
LOG_EVERY = 50
MOMENTUM_OF_LOG = 0.97


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run."""

    seed: int = 0
    """Seed of the weights and of the data."""
    vision_steps: int = 1100
    """Steps of stage A."""
    vision_clips: int = 64
    """Frame pairs a step of stage A."""
    vision_rate: float = 3e-3
    """Highest learning rate of stage A."""
    caption_steps: int = 3200
    """Steps of stage B."""
    caption_clips: int = 32
    """Clips a step of stage B."""
    caption_rate: float = 3e-3
    """Highest learning rate of stage B."""
    easy_share: float = 0.05
    """Share of stage B that has no sequences of events yet."""
    large_share: float = 0.06
    """Share of the steps of stage B in which half the batch is replaced by large frames."""
    dense_weight: float = 0.3
    """Weight of the dense labels at the start of stage B; it falls to 0 at the end."""


@dataclass(frozen=True)
class Stage:
    """One schedule: a warm-up, a plateau, then a straight line down."""

    name: str
    """`A` or `B`."""
    steps: int
    """Length."""
    rate: float
    """Highest learning rate."""
    warm_up: int
    """Steps of the warm-up."""
    plateau: float
    """Share of the stage before the rate falls."""
    floor: float
    """Share of the rate that remains at the end."""

    def learning_rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        done = step / self.steps
        falling = 1 - (1 - self.floor) * max(0.0, done - self.plateau) / (1 - self.plateau)
        return self.rate * min(1.0, (step + 1) / self.warm_up) * falling


class Learner(nn.Module):
    """The model with a throw-away head that reads dense labels off its video tokens."""

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(HIDDEN_SIZE, 1 + len(CLASSES) + REGRESSIONS)
        self._features: Tensor | None = None
        model.model.visual.merger.register_forward_hook(self._keep_features)

    def _keep_features(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._features = output

    def see(self, batch: VisionBatch) -> tuple[Tensor, dict[str, float]]:
        """Dense loss of the vision tower alone."""
        self.model.model.visual(normalized(batch.pixels), grid_thw=batch.grid)
        return self._dense_loss(batch)

    def answer(self, batch: CaptionBatch) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Answer loss and dense loss of the whole model."""
        logits, labels = self._answer_logits(batch)
        loss = functional.cross_entropy(logits, labels)
        dense, figures = self._dense_loss(batch)
        right = (logits.argmax(1) == labels).float().mean().item()
        return loss, dense, {"loss": loss.item(), "token_accuracy": right, **figures}

    def _answer_logits(self, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
        """Logits of the answer tokens only."""
        hidden = self.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            pixel_values_videos=normalized(batch.pixels),
            video_grid_thw=batch.grid,
        ).last_hidden_state
        labels = batch.labels[:, 1:]
        wanted = labels != -100
        return self.model.lm_head(hidden[:, :-1][wanted]), labels[wanted]

    def _dense_loss(self, batch: VisionBatch) -> tuple[Tensor, dict[str, float]]:
        assert self._features is not None
        outputs = self.head(self._features)
        scores, values = outputs[:, : 1 + len(CLASSES)], outputs[:, 1 + len(CLASSES) :]
        weights = torch.ones(1 + len(CLASSES))
        weights[0] = 0.25
        loss = functional.cross_entropy(scores, batch.classes, weight=weights)
        on_thing = batch.classes > 0
        if not on_thing.any():
            return loss, {}
        where = functional.smooth_l1_loss(values[on_thing], batch.regressions[on_thing], beta=0.05)
        right = (scores[on_thing].argmax(1) == batch.classes[on_thing]).float().mean().item()
        return loss + 2 * where, {"class_accuracy": right, "regression": where.item()}


# ---- optimisation -----------------------------------------------------------------------------------------------


def build_optimizers(modules: Iterable[nn.Module]) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings, biases, norms and the throw-away head."""
    hidden, others = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            is_hidden = parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "head"))
            (hidden if is_hidden else others).append(parameter)
    return [
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01),
        Muon(hidden, lr=0.0),
    ]


def apply_gradients(optimizers: list[torch.optim.Optimizer], learner: Learner, rate: float) -> None:
    """One clipped step of all optimizers; gradients are gone afterwards."""
    nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


# ---- data -------------------------------------------------------------------------------------------------------


class StepData(Dataset[list[Any]]):
    """The batches of each step, determined by the recipe's seed, the stage and the number of the step."""

    def __init__(self, recipe: Recipe, stage: Stage, writer: TokenWriter) -> None:
        self._recipe, self._stage, self._writer = recipe, stage, writer

    def __getitem__(self, step: int) -> list[Any]:
        words = (TRAINING_STREAM, self._recipe.seed, ord(self._stage.name), step)
        rng = np.random.default_rng(np.random.SeedSequence(words))
        if self._stage.name == "A":
            return [vision_batch(rng, self._recipe.vision_clips)]
        return self._caption_batches(rng, step / self._stage.steps)

    def _caption_batches(self, rng: np.random.Generator, done: float) -> list[CaptionBatch]:
        mix = EASY_MIX if done < self._recipe.easy_share else TRAINING_MIX
        clips = self._recipe.caption_clips
        if rng.random() >= self._recipe.large_share:
            return [caption_batch(rng, self._writer, clips, mix=mix)]
        usual = caption_batch(rng, self._writer, clips // 2, mix=mix)
        return [usual, caption_batch(rng, self._writer, clips, mix=mix, large=True)]


def _unchanged(batches: list[Any]) -> list[Any]:
    return batches


# ---- the run ----------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a run has come; saved with the weights."""

    stage: str = "A"
    """Stage of the next step."""
    step: int = 0
    """Next step of that stage."""
    seconds: float = 0.0
    """Time spent so far, over all sessions of the run."""
    clips: int = 0
    """Clips and frame pairs seen so far."""
    figures: dict[str, float] = field(default_factory=dict)
    """Running means for the log."""

    def note(self, figures: dict[str, float]) -> None:
        """Take one step's figures into the running means."""
        for name, value in figures.items():
            mean = self.figures.get(name, value)
            self.figures[name] = MOMENTUM_OF_LOG * mean + (1 - MOMENTUM_OF_LOG) * value


class Run:
    """One training run in one folder."""

    def __init__(self, folder: Path, recipe: Recipe, *, save_every: int) -> None:
        self.folder, self.recipe, self.save_every = folder, recipe, save_every
        folder.mkdir(parents=True, exist_ok=True)
        self._remember_recipe()
        self.tokenizer = self._tokenizer()
        self.writer = TokenWriter(self.tokenizer)
        self.learner = Learner(build_model(self.tokenizer, seed=recipe.seed))
        self.progress = Progress()
        self.stages = {
            "A": Stage("A", recipe.vision_steps, recipe.vision_rate, warm_up=40, plateau=0.0, floor=0.1),
            "B": Stage("B", recipe.caption_steps, recipe.caption_rate, warm_up=60, plateau=0.25, floor=0.01),
        }
        self.optimizers = self._optimizers()
        self._resume()

    def train(self) -> None:
        """Run the rest of both stages and export the result."""
        learn = {"A": self._learn_to_see, "B": self._learn_to_answer}
        while self.progress.stage in self.stages:
            stage = self.stages[self.progress.stage]
            began = time.monotonic()
            for batches in self._data(stage):
                self._one_step(stage, learn[stage.name], batches, began)
                began = time.monotonic()
            self._next_stage()
        export_checkpoint(self.learner.model, self.tokenizer, self.folder / "checkpoint")
        self._log(f"done after {self.progress.seconds / 60:.1f} min, {self.progress.clips} clips and pairs")

    def _data(self, stage: Stage) -> DataLoader[Any]:
        """Batches of the remaining steps, made by a second process."""
        steps = range(self.progress.step, stage.steps)
        return DataLoader(
            StepData(self.recipe, stage, self.writer),
            batch_size=None,
            sampler=steps,
            num_workers=1,
            collate_fn=_unchanged,
            prefetch_factor=3,
        )

    def _one_step(self, stage: Stage, learn: Callable[[Any, float], None], batches: Any, began: float) -> None:
        step = self.progress.step
        learn(batches, step / stage.steps)
        apply_gradients(self.optimizers, self.learner, stage.learning_rate(step))
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - began
        if self.progress.step % LOG_EVERY == 0:
            self._log_step(stage)
        if self.progress.step % self.save_every == 0:
            self._save()

    def _learn_to_see(self, batches: list[VisionBatch], _done: float) -> None:
        for batch in batches:
            loss, figures = self.learner.see(batch)
            loss.backward()
            self.progress.clips += self.recipe.vision_clips
            self.progress.note(figures)

    def _learn_to_answer(self, batches: list[CaptionBatch], done: float) -> None:
        total = sum(batch.clips for batch in batches)
        dense_weight = self.recipe.dense_weight * (1 - done)
        for batch, prefix in zip(batches, ("", "large_"), strict=False):
            loss, dense, figures = self.learner.answer(batch)
            ((loss + dense_weight * dense) * (batch.clips / total)).backward()
            self.progress.note({prefix + name: value for name, value in figures.items()})
        self.progress.clips += total

    def _next_stage(self) -> None:
        following = {"A": "B", "B": "done"}[self.progress.stage]
        self.progress = Progress(following, 0, self.progress.seconds, self.progress.clips)
        if following in self.stages:
            self.optimizers = self._optimizers()
        self._save()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        body = self.learner.model.model.visual if self.progress.stage == "A" else self.learner.model
        return build_optimizers([body, nn.ModuleDict({"head": self.learner.head})])

    # -- folder

    def _remember_recipe(self) -> None:
        path, mine = self.folder / "recipe.json", asdict(self.recipe)
        if not path.exists():
            path.write_text(json.dumps(mine, indent=1) + "\n")
        elif json.loads(path.read_text()) != mine:
            raise SystemExit(f"{path} holds another recipe than this command asks for; choose another --out")

    def _tokenizer(self) -> Qwen2TokenizerFast:
        path = self.folder / "tokenizer.json"
        if path.exists():
            return wrap_tokenizer(Tokenizer.from_file(str(path)))
        tokenizer = train_tokenizer()
        tokenizer.backend_tokenizer.save(str(path))
        return tokenizer

    def _save(self) -> None:
        state = {
            "progress": asdict(self.progress),
            "learner": self.learner.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "torch_rng": torch.get_rng_state(),
        }
        partial = self.folder / "state.pt.part"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pt")

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.progress = Progress(**state["progress"])
        self.learner.load_state_dict(state["learner"])
        self.optimizers = self._optimizers()
        if self.progress.stage in self.stages:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        torch.set_rng_state(state["torch_rng"])
        self._log(f"resumed at stage {self.progress.stage} step {self.progress.step}")

    def _log_step(self, stage: Stage) -> None:
        figures = " ".join(f"{name} {value:.4f}" for name, value in self.progress.figures.items())
        rate = stage.learning_rate(self.progress.step - 1)
        minutes = self.progress.seconds / 60
        self._log(f"{stage.name} {self.progress.step}/{stage.steps} {minutes:.1f} min rate {rate:.5f} {figures}")

    def _log(self, line: str) -> None:
        print(line, flush=True)
        with (self.folder / "log.txt").open("a") as log:
            log.write(line + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line; every field of the recipe is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing one is resumed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads beside the one that draws the data")
    parser.add_argument("--save-every", type=int, default=250, help="steps between saves")
    for name, value in asdict(Recipe()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    return parser.parse_args()


def main() -> None:
    """Train, or resume training."""
    arguments = vars(parse_arguments())
    folder, threads, save_every = (arguments.pop(name) for name in ("out", "threads", "save_every"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(threads)
    with fast_operations():
        Run(folder, Recipe(**arguments), save_every=save_every).train()


if __name__ == "__main__":
    main()
