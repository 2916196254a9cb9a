"""Long-tailed recognition with and without BatchFormer: one table, three figures; run by `make demo`."""

import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longtail.data import Data
from longtail.digits import LongTailedDigits
from longtail.figures import draw_accuracy, draw_curves
from longtail.groups import describe
from longtail.image_lists import ListError, read_lists
from longtail.images import ListedImages, Loading
from longtail.models import ARMS, WITH_BATCHFORMER, resnet, small_convnet
from longtail.options import Options, make_parser, parse
from longtail.relation_figure import draw_relations
from longtail.report import table, versions, write_csv, write_json
from longtail.summary import by_chance, summarise, verdict
from longtail.training import Recipe, Run, train

QUICK_NOTE = "--quick: these numbers mean nothing; they show that everything runs."


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the demo, 0; a bad option or list ends the program with a sentence and status 2."""
    parser = make_parser()
    options = parse(parser, arguments)
    torch.set_num_threads(options.threads)
    try:
        make_data, recipe = prepare(options)
        run_and_report(options, make_data, recipe)
    except ListError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return 0


def prepare(options: Options) -> tuple[Callable[[int], Data], Recipe]:
    """A function from a seed to its data, and how to train on it. Reads and checks the lists, if any.

    Raises:
        ListError: see `read_lists`.
    """
    common = {"steps": options.steps, "batch_size": options.batch_size, "loss": options.loss}
    if options.data is None:
        # Chosen for the baseline, on seeds 100 to 103; the other arms take it as it is.
        recipe = Recipe(small_convnet, weight_decay=5e-3, device=options.device, **common)
        return lambda seed: LongTailedDigits(options.imbalance, seed, options.device), recipe
    train_list, test_list, classes = read_lists(options.data, options.train_list, options.test_list)
    loading = Loading(options.image_size, options.batch_size, options.workers, options.device)
    recipe = Recipe(lambda: resnet(options.model), weight_decay=5e-4, device=options.device, **common)
    return lambda seed: ListedImages(train_list, test_list, classes, loading, seed), recipe


def run_and_report(options: Options, make_data: Callable[[int], Data], recipe: Recipe) -> None:
    """Train all arms on all seeds; print the table and the sentences, write CSV, JSON and figures."""
    console = Console(highlight=False)
    data = make_data(0)
    console.print(introduction(options, data), markup=False, soft_wrap=True)
    started = time.perf_counter()
    runs = train_all(options.seeds, make_data, recipe, console)
    seconds = time.perf_counter() - started
    cells = summarise(runs)
    sentences = [sentence for sentence in (verdict(cells), by_chance(cells, options.seeds)) if sentence]
    sentences += [QUICK_NOTE] * options.quick

    write_csv(options.out / "table.csv", cells)
    write_json(options.out / "results.json", options.as_json() | {"seconds": seconds}, cells, sentences, runs)
    draw_accuracy(options.out / "accuracy.png", runs)
    draw_curves(options.out / "curves.png", runs)
    draw_relations(options.out / "relations.png", next(run for run in runs if run.arm == WITH_BATCHFORMER))

    console.print(table(cells))
    for sentence in sentences:
        console.print(sentence, markup=False)
    console.print(
        f"\n{len(runs)} runs in {seconds:.0f} s. Table, all numbers and figures: {options.out}/"
        "{table.csv, results.json, accuracy.png, curves.png, relations.png}",
        markup=False,
        soft_wrap=True,
    )


def introduction(options: Options, data: Data) -> str:
    """What is about to be measured, with the versions that the numbers depend on."""
    source = f"digits, imbalance {options.imbalance:g}" if options.data is None else f"{options.train_list}"
    lines = [
        f"{source}: {int(data.counts.sum())} training images, {len(data.counts)} classes",
        describe(data.groups, data.counts),
        f"{options.seeds} seed{'s' * (options.seeds > 1)}, {len(ARMS)} arms, {options.steps} steps each, "
        f"{options.loss}; {options.device}, {options.threads} thread{'s' * (options.threads > 1)}",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return "\n".join([*lines, *[QUICK_NOTE] * options.quick])


def train_all(seeds: int, make_data: Callable[[int], Data], recipe: Recipe, console: Console) -> list[Run]:
    """Runs of all arms on seeds 0, 1, …, with one bar over all steps; without a terminal there is no bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    runs = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=seeds * len(ARMS) * recipe.steps)
        for seed in range(seeds):
            data = make_data(seed)
            for arm in ARMS:
                progress.update(bar, description=f"seed {seed}, {arm:<19}")
                runs.append(train(arm, data, recipe, lambda: progress.advance(bar)))
    return runs


if __name__ == "__main__":
    sys.exit(main())
