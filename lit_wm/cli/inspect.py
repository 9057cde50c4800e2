"""``lit-wm inspect PATH``: what a shard folder or a run holds."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from datamodules.experience import ActionSpace
from lit_wm.cli.parser import OneLineArgumentParser
from lit_wm.errors import UserError


def main(argv: list[str]) -> None:
    """Print a table about a shard folder, a run folder or a checkpoint.

    Raises:
        UserError: the path is none of these.
    """
    parser = OneLineArgumentParser(prog="lit-wm inspect", description=__doc__)
    parser.add_argument("path", type=Path, help="a folder of shards, a run folder, or a .ckpt file")
    parser.add_argument("--verify", action="store_true", help="decode every shard and check it against the index")
    options = parser.parse_args(argv)
    path: Path = options.path
    if not path.exists():
        raise UserError(f"nothing at {path}")
    if (path / "index.json").exists():
        show_shards(path, options.verify)
    elif path.suffix == ".ckpt" or (path / "checkpoints").is_dir():
        show_run(path)
    else:
        raise UserError(f"{path} holds neither shards (index.json) nor a run (checkpoints/)")


def show(title: str, rows: dict[str, object]) -> None:
    """Print a two-column table."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console().print(table)


def show_shards(root: Path, deep: bool) -> None:
    """What was recorded, by whom, and how much of it."""
    from datamodules.shards import read_index, verify

    index = read_index(root)
    spec = index.spec
    rows: dict[str, object] = {
        "environment": ", ".join(f"{k}={v}" for k, v in index.environment.items()),
        "policy, seed": f"{index.policy}, {index.seed}" if spec.acted else "none: nobody acted",
        "observations": ", ".join(f"{k} {'x'.join(map(str, s))}" for k, s in spec.observations.items()),
        "actions": actions(spec.action)
        if spec.acted
        else "none, and no rewards: models that need them refuse this data",
        "factors": ", ".join(f"{f.name} ({f.group})" for f in spec.factors) or "none",
    }
    for split, counts in index.splits.items():
        rows[split] = ", ".join(f"{value} {name}" for name, value in counts.items())
    if files := {source.file for shard in index.shards for source in shard.sources}:
        rows["made from"] = f"{len(files)} files, each episode's under 'sources' in {root / 'index.json'}"
    size = sum(shard.bytes for shard in index.shards)
    rows["shards"] = f"{len(index.shards)} files, {size / 1e6:.1f} MB, codec {index.codec}"
    rows["complete"] = "yes" if index.complete else "no: the recording was interrupted"
    rows["data hash"] = index.data_hash
    if deep:
        verify(root)
        rows["verified"] = "every shard decodes and agrees with the index"
    show(f"shards in {root}", rows)


def actions(space: ActionSpace) -> str:
    """An action space in words."""
    return f"{space.kind} {'x'.join(map(str, space.sizes))} {' '.join(space.names)}"


def show_run(path: Path) -> None:
    """Which model, how far trained, on what."""
    from lit_wm.loading import load_run

    run = load_run(path)
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in run.model.parameters())
    show(
        f"run {path}",
        {
            "model": type(run.model).__name__,
            "parameters": f"{total:,} ({trainable:,} trained)",
            "updates": run.global_step,
            "labels used": ", ".join(run.model.labels),
            "acts by": run.model.action_space,
            "shards": f"{run.root} (hash {run.data_hash})",
            "seed": run.seed,
            "checkpoint": run.checkpoint,
            "load it": f'lit_wm.load("{path}")',
        },
    )
