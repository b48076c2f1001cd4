"""Run, go on with, or only draw the tables and figures of the thesis.

Each NAME trains what stands behind it, skips what is done, and writes
results/NAME.csv, .md and .png. `report` writes RESULTS.md from the model cards
and from what is under results/. A scaled version has its scale in the file
names, and every page and picture of it says so.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout needs no installation

from tcl_zoo.cli import FAILED, OK, STOPPED, Parser, count, count_or_zero, guarded, seconds
from tcl_zoo.memory import keep_freed
from tcl_zoo.recipes import DATA, ENCODERS
from tcl_zoo.reproduce.grids import GRIDS


def _parser() -> Parser:
    parser = Parser(
        description=__doc__,
        example="""
            python scripts/reproduce.py table-5.1 --data-dir data --list
            python scripts/reproduce.py fig-5.6 --scale 0.1 --dataset digits
            python scripts/reproduce.py all --data-dir data --shard 2/8
            python scripts/reproduce.py all --render    # from what is finished
            python scripts/reproduce.py report
        """,
    )
    names = (*GRIDS, "all", "report")
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--data-dir", metavar="DIR", help="where the data sets are; digits needs none")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch a missing data set")
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="run folders (default: runs)")
    parser.add_argument("--results-dir", default="results", metavar="DIR", help="tables and pictures")
    parser.add_argument("--cards-dir", default="model_cards", metavar="DIR", help="releases, which count as runs")
    parser.add_argument("--list", action="store_true", help="show the runs, what is done and the time left; no more")
    parser.add_argument("--render", action="store_true", help="train nothing; draw what the finished runs give")
    parser.add_argument("--overwrite", action="store_true", help="also results of more runs than are in --runs-dir")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="S",
        help="share of the training steps, above 0: first fewer epochs, then fewer images, as many of each class",
    )  # fmt: skip
    parser.add_argument("--encoder", choices=ENCODERS, default="", help="instead of the thesis's")
    parser.add_argument("--dataset", choices=tuple(DATA), default="", help="instead of CIFAR-100 (ci, fig-5.5 to 5.8)")
    parser.add_argument(
        "--seeds", type=count, metavar="N", help="runs of each cell, seeds 0 to N-1 (default: 1, ci 30)"
    )
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="only every n-th run, from the i-th")
    parser.add_argument("--time-limit", type=seconds, metavar="T", help="stop cleanly after 90s, 9m, 1h: exit code 3")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--protocol", default="cached", choices=("cached", "thesis"), help="of the linear probe")
    parser.add_argument(
        "--workers", type=count_or_zero, default=2, metavar="N", help="DataLoader workers of a streamed folder"
    )
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    return parser


def main() -> int:
    """The command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args()
    if args.list and args.render:
        parser.error("--list shows and --render draws; give one of them")

    from tcl_zoo.reproduce.plan import Plan
    from tcl_zoo.reproduce.runner import Store, checked_shard, run_all, shard
    from tcl_zoo.reproduce.scale import Scale

    index, shards = checked_shard(args.shard)
    store, results = Store(Path(args.runs_dir), Path(args.cards_dir)), Path(args.results_dir)
    scale = Scale(args.scale, args.encoder, args.dataset)
    names = GRIDS if "all" in args.names else [name for name in args.names if name != "report"]
    if args.render and not args.seeds:
        plans = [Plan.found(GRIDS[name], scale, store) for name in names]
    else:
        plans = [Plan.of(GRIDS[name], scale, args.seeds) for name in names]
    jobs = shard((job for plan in plans for job in plan.jobs()), index, shards)
    if args.list:
        for plan in plans:
            print(plan.listing(store, jobs))
        return OK
    finished, notes = True, list[str]()
    if not args.render:
        keep_freed()
        finished, notes = run_all(
            jobs, store, args.data_dir, args.time_limit, precision=args.precision, download=args.download,
            cpu=args.cpu, protocol=args.protocol, workers=args.workers,
        )  # fmt: skip

    from tcl_zoo.processes import main_alone

    if not main_alone(args.cpu):
        return OK  # a launcher would end the main process for another one's code

    from tcl_zoo.reproduce.results import render

    for plan in plans:
        if files := render(plan, store, results, args.overwrite):
            print(f"wrote {', '.join(map(str, files))}")
        else:
            print(f"kept {results / plan.stem}.csv, which is of more runs than are here: --overwrite replaces it")
    if "report" in args.names:
        from tcl_zoo.reproduce.overview import write_overview

        print(f"wrote {write_overview(results, store.cards, Path('RESULTS.md'))}")
    for note in notes:
        print(f"not done: {note}", file=sys.stderr)
    if not finished:
        print("stopped; the same command goes on")
        return STOPPED
    return FAILED if notes else OK


if __name__ == "__main__":
    sys.exit(guarded(main))
