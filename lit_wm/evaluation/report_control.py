"""The sections of ``scorecard.md`` about control: do actions steer, and what are latent actions about?"""

from __future__ import annotations

from lit_wm.evaluation.judge import RunScores
from lit_wm.evaluation.report_tables import Notes, fixed, table, whole
from lit_wm.evaluation.scorecard import Scorecard

NO_CODES = "n/a: no run has codes of its own."


def control(card: Scorecard) -> list[str]:
    """Delta PSNR, transfer and counterfactual accuracy with their floors and ceilings."""
    notes, rows = Notes(), []
    real = notes.cell(card.runs[0].numbers.get("control/ceiling_real_frames"), fixed(3), interval=False)
    for run in card.runs:
        n, kind = run.numbers, "codes" if "codes/used" in run.numbers else "actions"
        terms = (n.get(f"delta_psnr_{term}/k4/{kind}") for term in ("true", "random"))
        rows.append(
            [
                run.name,
                kind,
                notes.cell(n.get(f"delta_psnr/k4/{kind}"), fixed(2)),
                " / ".join(notes.cell(number, fixed(1), interval=False) for number in terms),
                notes.cell(n.get(f"delta_psnr/k4/{kind}_common"), fixed(2)),
                *with_floor(run, "codes/transfer_accuracy", notes),
                *with_floor(run, "control/counterfactual_accuracy", notes),
                " / ".join(
                    notes.cell(n.get(f"control/ceiling_{of}"), fixed(2), False) for of in ("frames", "features")
                ),
            ]
        )
    head = ["run", "by", "delta-PSNR, t=4", "true / random", "common decoder", "transfer", "shuffled"]
    head += ["counterfactual", "shuffled", "ceiling: effects read off frames / features of what was seen"]
    return [
        "## Control: does an action do in imagination what it does in the world?",
        "",
        "*Delta-PSNR* (Genie): PSNR of the fourth frame imagined from one frame with true actions (or codes inferred from the true"
        " future), less that with random ones, in dB; 0 means that actions are ignored. **It misleads alone**: it grows with"
        " everything that a code carries, so codes that leak the next frame, or that follow a distractor and not the agent, score high."
        " Believe it only beside a high transfer and AMI and a low leak. *Transfer*: a code that was inferred where one clip made"
        " a movement, applied to another clip's state, makes that movement there. *Counterfactual*: from one state every action"
        " (or the code that stands for it) is tried; the agent moves as the world would have moved it. Steps blocked by a wall are left out."
        f" Both are read off one imagined step: off frames by a network that was trained on real ones (there it is right in {real})"
        " or off features by a ridge regression of the agent's place, whichever is the better on states that were seen (the ceiling).",
        *table(head, rows),
        *notes.lines(),
    ]


def with_floor(run: RunScores, tag: str, notes: Notes) -> list[str]:
    """A score and its floor."""
    return [notes.cell(run.numbers.get(f"{tag}{floor}"), fixed(3), interval=not floor) for floor in ("", "_shuffled")]


def codes(card: Scorecard) -> list[str]:
    """Latent actions against labels, for runs that have some."""
    runs = [run for run in card.runs if "codes/used" in run.numbers]
    lines = ["## Latent actions: do they match the true ones?"]
    if not runs:
        return [*lines, "", NO_CODES]
    lines += [
        "",
        "Codes against what the action really did (steps blocked by a wall left out) and against the command. *AMI* is 0 by chance"
        " and 1 for a one-to-one match. *Majority*: each code named by its most frequent label. *Hungarian*: one code for one label,"
        " surplus codes miss. *Logistic*: a logistic regression from the code, the one score that continuous codes have too. All three are"
        " fitted on training clips and scored on test clips. What each code does is drawn in `codes_RUN.png`.",
    ]
    notes, rows = Notes(), []
    for run in runs:
        for label in ("effect", "command"):
            n = run.numbers
            names = ("ami", "ami_shuffled", "accuracy", "hungarian", "logistic")
            row = [notes.cell(n.get(f"codes/{label}_{name}"), fixed(3)) for name in names]
            floors = (n.get(f"codes/{label}_{floor}") for floor in ("logistic_shuffled", "accuracy_majority_class"))
            row.append(" / ".join(notes.cell(number, fixed(3), interval=False) for number in floors))
            used = [notes.cell(n["codes/used"], whole), notes.cell(n["codes/perplexity"], fixed(2))]
            rows.append([run.name, label, *row, *used])
    head = ["run", "against", "AMI", "AMI, shuffled", "majority", "Hungarian", "logistic"]
    head += ["floors: shuffled / majority class", "codes used", "perplexity"]
    return [*lines, *table(head, rows), *notes.lines()]


def carried(card: Scorecard) -> list[str]:
    """What moves, and how much of it the codes tell."""
    runs = [run for run in card.runs if "codes/used" in run.numbers]
    lines = ["## Latent actions: what do they carry?"]
    if not runs:
        return [*lines, "", NO_CODES]
    lines += [
        "",
        "R2 of a ridge regression from the code, on held-out episodes, beside the same for shuffled codes. *Movement* of each thing"
        " between two frames: what the codes are about. *Leak*: of its innovation alone, what of the movement the past did not say;"
        " no action caused it, so a code that tells it has smuggled the next frame past the dynamics.",
    ]
    notes, rows = Notes(), []
    for run in runs:
        things = [tag.split("/")[2] for tag in run.numbers if tag.startswith(("codes/movement_r2/", "codes/leak_r2/"))]
        for thing in ("", *dict.fromkeys(things)):
            row = [run.name, thing or "**all exogenous things**"]
            for measure in ("movement_r2", "leak_r2"):
                tags = [f"codes/{measure}{suffix}/{thing}".rstrip("/") for suffix in ("", "_shuffled")]
                found = [run.numbers.get(tag) for tag in tags]
                row.append("" if found[0] is None else notes.cell(found[0], fixed(2)))
                row.append("" if found[1] is None else notes.cell(found[1], fixed(2), interval=False))
            rows.append(row)
    head = ["run", "thing", "movement, R2", "shuffled", "leak, R2", "shuffled"]
    return [*lines, *table(head, rows), *notes.lines()]
