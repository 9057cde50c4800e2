"""``scorecard.md``: the scorecard for reading. Every score stands beside its floors; n/a carries its reason."""

from __future__ import annotations

from lit_wm.evaluation.judge import RunScores
from lit_wm.evaluation.report_control import carried, codes, control
from lit_wm.evaluation.report_tables import Format, Notes, fixed, plain_table, table, whole
from lit_wm.evaluation.scorecard import Scorecard

ENOUGH_EPISODES = 10  # below it a percentile bootstrap over episodes covers clearly less than it says
OVER_SEEDS = (  # besides the scores by horizon
    "delta_psnr/k4/codes",
    "delta_psnr/k4/actions",
    "codes/effect_ami",
    "codes/effect_accuracy",
    "codes/effect_hungarian",
    "codes/effect_logistic",
    "codes/transfer_accuracy",
    "codes/leak_r2",
    "control/counterfactual_accuracy",
)


def markdown(card: Scorecard) -> str:
    """The whole page."""
    parts = (header, state, factors, pictures, control, codes, carried, collapse, cost)
    sections = [part(card) for part in parts]
    if card.groups:
        sections.append(seeds(card))
    return "\n".join(line for section in sections for line in [*section, ""]).rstrip() + "\n"


def header(card: Scorecard) -> list[str]:
    """What was judged, on what, and with which privileges."""
    data, s = card.data, card.settings
    splits = ", ".join(f"{name} {n['clips']} clips of {n['episodes']} episodes" for name, n in data["splits"].items())
    lines = [
        "# Scorecard",
        "",
        f"Data `{data['hash'][:16]}` ({data['environment']}), {data['resolution']} pixels; {splits}; split by episode, the same"
        f" clips for every run. Context {s.context} frames, then open loop for up to {s.steps} steps at temperature"
        f" {s.temperature:g}. Cost on {data['threads']} thread(s), {data['machine']}.",
        "",
        "Brackets are 95 % bootstrap intervals over test episodes: they say how sure a number is for **this** trained run, not"
        " how much another seed would differ. Losses of different routes are not comparable and do not appear. There is no"
        " overall score, on purpose.",
        *few_episodes(data["splits"]["test"]["episodes"]),
        "",
        "## The runs",
    ]
    notes = Notes()
    rows = []
    for run in card.runs:
        size = notes.cell(run.numbers["cost/parameters"], whole)
        if run.numbers["cost/parameters_trained"].value is not None:
            size += f" ({whole(run.numbers['cost/parameters_trained'].value)})"
        route, updates, seen, seed = (run.facts.get(key) for key in ("route", "updates", "frames_seen", "seed"))
        counts = ["unknown" if count is None else whole(count) for count in (updates, seen)]
        rows.append(
            [run.name, route, ", ".join(run.labels), run.steering, size, *counts, "unknown" if seed is None else seed]
        )
    head = ["run", "route", "labels used", "steered by", "parameters (trained)", "updates", "frames seen", "seed"]
    return [*lines, *table(head, rows), *notes.lines()]


def few_episodes(episodes: int) -> list[str]:
    """A warning where the bootstrap has too little to draw from."""
    if episodes >= ENOUGH_EPISODES:
        return []
    return [
        "",
        f"**Only {episodes} test episodes: the brackets are too narrow.** Record more for intervals to rely on.",
    ]


def over_horizons(
    card: Scorecard, run: RunScores, measure: str, notes: Notes, digits: Format, tail: str = ""
) -> list[str]:
    """A row of cells, one per horizon."""
    return [notes.cell(run.numbers.get(f"{measure}/k{k}{tail}"), digits) for k in card.settings.horizons]


def state(card: Scorecard) -> list[str]:
    """State scores by group of factors and horizon."""
    lines = [
        "## State: how much of the true state can be read from what a run imagines",
        "",
        f"Imagined features, projected to {card.settings.probe_dims} numbers, ridge probe refitted at each horizon; R2 (for"
        " discrete factors balanced accuracy with chance at 0), mean over the factors of a group. *Skill* is"
        " (R2 - random) / (1 - random). Random weights are as built, but a codebook that starts by k-means has been started, on"
        " training clips. k=0 is the state after the last seen frame: the ceiling of the rows to its right.",
    ]
    groups = dict.fromkeys(
        tag.split("/")[2] for run in card.runs for tag in run.numbers if tag.startswith("state_skill/")
    )
    for group in groups:
        notes, rows = Notes(), []
        for run in card.runs:
            for title, measure in (
                ("**{}**: skill", "state_skill"),
                ("{}: R2", "state_r2"),
                ("{}: R2, k=0 probe kept", "state_r2_p0"),
                ("floor: {} with random weights", "state_r2_random"),
                ("floor: {}, state not rolled (persistence)", "state_r2_persistence"),
                ("{}: R2 less persistence", "state_minus_persistence"),
                ("*privileged*: {} with oracle codes, R2", "state_r2_oracle_codes"),
            ):
                if f"{measure}/k0/{group}" in run.numbers:
                    rows.append(
                        [title.format(run.name), *over_horizons(card, run, measure, notes, fixed(2), f"/{group}")]
                    )
        for title, measure in (
            ("floor: 8x8 pixels", "state_r2_pixels"),
            ("ceiling: the true state", "state_r2_ceiling"),
        ):
            rows.append([title, *over_horizons(card, card.runs[0], measure, notes, fixed(2), f"/{group}")])
        head = [f"group: {group}", *(f"k={k}" for k in card.settings.horizons)]
        lines += [*table(head, rows), *notes.lines()]
    return lines


def factors(card: Scorecard) -> list[str]:
    """Each factor by itself at one horizon: a mean hides which factor is missing."""
    horizons = [k for k in card.settings.horizons if k]
    k = horizons[len(horizons) // 2] if horizons else 0
    notes, rows = Notes(), []
    tags = [t for t in card.runs[0].numbers if t.startswith(f"state_r2/k{k}/") and t.count("/") == 3]
    for tag in tags:
        rest = tag.removeprefix("state_r2")
        row = [f"{tag.split('/')[3]} ({tag.split('/')[2]})"]
        for run in card.runs:
            row.append(notes.cell(run.numbers.get(tag), fixed(2)))
            floors = (run.numbers.get(f"state_r2_{floor}{rest}") for floor in ("random", "persistence"))
            row.append(" / ".join(notes.cell(number, fixed(2), interval=False) for number in floors))
        row.append(notes.cell(card.runs[0].numbers.get(f"state_r2_pixels{rest}"), fixed(2), interval=False))
        rows.append(row)
    head = ["factor", *(title for run in card.runs for title in (run.name, "random / persistence")), "8x8 pixels"]
    if not tags:
        return [f"## Each factor at k={k}", "", "n/a: the data holds no true state."]
    return [f"## Each factor at k={k}: R2 beside its floors", *table(head, rows), *notes.lines()]


def pictures(card: Scorecard) -> list[str]:
    """PSNR and SSIM."""
    lines = [
        "## Frames",
        "",
        "Mean over frames of 10 log10(1/MSE) and SSIM. *Own* is the run's own decoder; *common* is one decoder, the same for all,"
        " trained on each run's closed-loop features: compare runs by it. k=0 is each decoder's ceiling. Copying the last"
        " frame is the floor. PSNR rewards a still background: read it beside the picture and the state.",
    ]
    for measure, digits in (("psnr", fixed(1)), ("ssim", fixed(3))):
        notes = Notes()
        rows = [["floor: copy the last frame", *over_horizons(card, card.runs[0], f"{measure}_copy", notes, digits)]]
        for run in card.runs:
            for title, name in (
                ("{}, own", "native"),
                ("{}, common", "common"),
                ("*privileged*: {} with oracle codes, own", "native_oracle_codes"),
                ("*privileged*: {} with oracle codes, common", "common_oracle_codes"),
            ):
                if f"{measure}_{name}/k0" in run.numbers:
                    rows.append([title.format(run.name), *over_horizons(card, run, f"{measure}_{name}", notes, digits)])
        head = ["PSNR in dB" if measure == "psnr" else "SSIM", *(f"k={k}" for k in card.settings.horizons)]
        lines += [*table(head, rows), *notes.lines()]
    return lines


def collapse(card: Scorecard) -> list[str]:
    """The collapse panel."""
    return [
        "## Has the representation collapsed?",
        "",
        "NMSE of one imagined step: 1 is what predicting the mean scores. Retrieval: is the prediction nearest to its own target?"
        " Ranks come last because they mislead alone: noise around a constant has full rank, and a large offset makes a"
        " healthy representation look like rank one.",
        *plain_table(
            card,
            [
                ("NMSE", "collapse/nmse", fixed(3)),
                ("retrieval", "collapse/retrieval", fixed(3)),
                ("by chance", "collapse/retrieval_chance", fixed(3)),
                ("std", "collapse/std", lambda value: f"{value:.3g}"),
                ("effective rank, centred", "collapse/effective_rank", fixed(1)),
                ("RankMe, uncentred", "collapse/rankme", fixed(1)),
            ],
        ),
    ]


def cost(card: Scorecard) -> list[str]:
    """What the runs cost."""
    return [
        "## Cost",
        "",
        "Training step: CPU milliseconds of all threads together, median, on the run's own batch; routes that train their parts"
        " in turn differ between the first and the last update. Imagination: steps of all rollouts per wall second, not decoded.",
        *plain_table(
            card,
            [
                ("parameters", "cost/parameters", whole),
                ("trained", "cost/parameters_trained", whole),
                ("CPU ms, first update", "cost/train_step_cpu_ms_first", whole),
                ("CPU ms, last update", "cost/train_step_cpu_ms", whole),
                ("imagined frames/s, batch 1", "cost/imagined_frames_per_s_b1", whole),
                ("batch 64", "cost/imagined_frames_per_s_b64", whole),
            ],
        ),
    ]


def seeds(card: Scorecard) -> list[str]:
    """Runs that differ by their seed alone: mean with a t-interval over seeds."""
    lines = [
        "## Over seeds",
        "",
        "Mean and 95 % t-interval over seeds of one recipe after equally many updates (the intervals above are within one run).",
    ]
    measures = ("state_skill", "state_minus_persistence", "psnr_common", "psnr_native")
    tags = [
        f"{measure}/k{k}{'/task' * measure.startswith('state')}" for measure in measures for k in card.settings.horizons
    ]
    tags += OVER_SEEDS
    notes, rows = Notes(), []
    for title, numbers in card.over_seeds().items():
        rows += [
            [title, tag, notes.cell(numbers[tag], fixed(3)), str(numbers[tag].n)] for tag in tags if tag in numbers
        ]
    lines += table(["runs", "measure", "mean [interval]", "seeds"], rows)
    k = max(card.settings.horizons)
    if differences := card.differences(f"state_skill/k{k}/task"):
        rows = [[title, notes.cell(number, fixed(3)), str(number.n)] for title, number in differences.items()]
        lines += table([f"difference of state_skill/k{k}/task", "mean [paired interval]", "seeds"], rows)
    return [*lines, *notes.lines()]
