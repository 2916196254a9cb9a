"""What is printed, written and drawn of a table, and the page that is made from it."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from examples.tables import figures, page
from examples.tables import results as stored
from examples.tables.record import as_document, read_record, write_record
from examples.tables.report import report
from examples.tables.summary import summarise
from examples.tables.table import QUICK, Outcome
from table_cases import ORIGIN, TABLE, VERSIONS, made, result, results


def printed(runs, folder):
    console = Console(file=io.StringIO(), width=80, highlight=False)
    report(TABLE, runs, folder, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """What the results print, and the folder with what they write."""
    folder = tmp_path_factory.mktemp("report")
    return printed(results(), folder), folder


def test_everything_is_readable_in_80_columns(full):
    lines = full[0].splitlines()
    assert max(map(len, lines[:-1])) <= 80  # the last line names files
    assert "…" not in full[0]
    for text in (*TABLE.systems, *TABLE.arms, "±", "Entropy", "BatchFormer", "- uniform"):
        assert text in full[0]


def test_every_mean_and_difference_is_printed_whole(full):
    summary = summarise(TABLE, results())
    for cell in summary.cells:
        assert f"{cell.mean:.1f} ± {cell.standard_error:.1f}" in full[0]
    for each in summary.differences:
        assert f"{each.low:+.1f} to {each.high:+.1f}" in full[0]
    assert full[0].count("*") - len(TABLE.systems) == sum(each.holds for each in summary.differences) > 0


def test_one_seed_prints_dashes_and_no_nan(tmp_path):
    text = printed(results(range(1), lengthened=False), tmp_path)
    assert "± -" in text
    assert "nan" not in text
    assert "nothing can be said of any difference" in " ".join(text.split())
    assert "nan" not in (tmp_path / "means.csv").read_text().lower()
    document = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert {each["low"] for each in document["summary"]["differences"]} == {None}
    assert {each["standard_error"] for each in document["summary"]["cells"]} == {None}


def test_no_result_prints_that_and_writes_nothing(tmp_path):
    assert "There is no result." in printed([], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_files_have_what_the_summary_has(full):
    summary = summarise(TABLE, results())
    with (full[1] / "means.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["system"], row["arm"], row["column"]) for row in rows] == [
        (cell.system, cell.arm, cell.column) for cell in summary.cells
    ]
    assert [float(row["mean"]) for row in rows] == pytest.approx(
        [cell.mean for cell in summary.cells], rel=1e-5
    )
    with (full[1] / "differences.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    both = [*summary.differences, *summary.convergence]
    assert [float(row["low"]) for row in rows] == pytest.approx(
        [each.low for each in both], rel=1e-4, abs=1e-5
    )
    document = json.loads((full[1] / "results.json").read_text(encoding="utf-8"))
    assert [each["high"] for each in document["summary"]["differences"]] == [
        e.high for e in summary.differences
    ]
    assert document["sentences"][0].startswith("4 seeds, paired.")


def test_a_record_gives_back_the_results_it_was_made_of(tmp_path):
    runs = results()
    write_record(tmp_path / "record.json", as_document(TABLE, runs))
    again = read_record(tmp_path / "record.json")
    related = [place for place, run in enumerate(runs) if run.outcome.relations]
    assert len(related) == 2
    first = again[related[0]].outcome
    np.testing.assert_allclose(first.relations, runs[related[0]].outcome.relations, atol=5e-6)
    np.testing.assert_allclose(first.untrained_relations, 1 / 6, atol=5e-6)
    assert first.labels == [0, 0, 1, 1, 2, 2]

    def without(run):
        left_out = {"relations": None, "untrained_relations": None, "labels": None}
        return replace(run, outcome=replace(run.outcome, **left_out))

    assert list(map(without, again)) == list(map(without, runs))
    assert summarise(TABLE, again).differences == summarise(TABLE, runs).differences  # to the last bit
    assert (tmp_path / "record.json").stat().st_size < 30_000


@pytest.mark.parametrize("name", ["differences.png", "relations.png"])
def test_the_pictures_are_not_blank(full, name):
    with Image.open(full[1] / name) as picture:
        assert min(picture.size) > 400
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The figure of some results."""
    figure = []
    monkeypatch.setattr(figures, "save", lambda made, _path: figure.append(made))

    def draw(runs):
        figures.draw_differences(tmp_path, summarise(TABLE, runs))
        return figure[-1]

    return draw


def test_the_figure_has_each_difference_where_it_belongs(drawn):
    summary = summarise(TABLE, results())
    panels = drawn(results()).axes
    assert len(panels) == 2 * 2
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == [f"{first} - {second}" for first, second in TABLE.contrasts_of(TABLE.systems[0])]
    for place, panel in enumerate(panels):
        system, column = TABLE.systems[place // 2], TABLE.primary[place % 2]
        assert " ".join(panel.get_title(loc="left").split()) == f"{system}: {column}"
        found = [each for each in summary.primary if (each.system, each.column) == (system, column)]
        assert len(panel.containers) == len(found) == 5
        for container, each in zip(panel.containers, found, strict=True):
            point, _, (bar,) = container.lines
            assert point.get_xdata()[0] == each.mean
            assert names[round(point.get_ydata()[0])] == each.contrast
            np.testing.assert_allclose(bar.get_segments()[0][:, 0], [each.low, each.high])


def test_arms_differ_by_colour_and_by_marker(drawn):
    points = [container.lines[0] for container in drawn(results()).axes[0].containers]
    against_baseline = points[:4]
    assert len({point.get_color() for point in against_baseline}) == 4
    assert len({point.get_marker() for point in against_baseline}) == 4
    assert points[4].get_markerfacecolor() == "white"  # BatchFormer against uniform


def test_nothing_of_the_figure_is_outside_of_it(drawn):
    figure = drawn(results())
    figure.draw_without_rendering()
    reach = figure.get_tightbbox()  # the size of everything that is drawn, in inches
    width, height = figure.get_size_inches()
    assert 0 <= reach.x0 <= reach.x1 <= width
    assert 0 <= reach.y0 <= reach.y1 <= height


def test_one_seed_is_drawn_without_intervals_and_says_so(drawn):
    figure = drawn(results(range(1), lengthened=False))
    assert "one seed, no interval" in figure.get_suptitle()
    assert all(not container.has_xerr for container in figure.axes[0].containers)


def test_relations_are_drawn_from_before_and_after_training(monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(figures, "save", lambda made, _path: saved.append(made))
    assert figures.draw_relations(tmp_path, TABLE, results()) == tmp_path
    before, after = saved[0].axes[:2]
    assert before.get_title() == "untrained: 33.3 % on the own class"
    assert after.get_title().startswith("trained: ")
    assert after.get_title() != "trained: 33.3 % on the own class"
    assert saved[0].get_suptitle().endswith("spread evenly: 33.3 % on\nthe own class")
    assert figures.draw_relations(tmp_path, TABLE, made([[1, 2]])) is None


@pytest.fixture
def write_page(tmp_path, monkeypatch):
    """The page of results that commands have left."""
    monkeypatch.setattr(stored, "versions", lambda: VERSIONS)
    monkeypatch.setattr(stored, "origin", lambda _device: ORIGIN)

    def write(runs):
        left = stored.Results(tmp_path / "results", TABLE)
        for run in runs:
            left.save(run.job, run.outcome, run.seconds)
        page.main(["--docs", str(tmp_path), "--from", str(tmp_path / "results")], [TABLE])
        return (tmp_path / "tables.md").read_text(encoding="utf-8")

    return write


def test_what_other_commands_have_left_out_is_said(write_page):
    first, second = TABLE.systems
    text = write_page([run for run in results() if run.job.system == first])
    assert f"Not computed yet for this page: {second}." in text


def test_a_system_that_is_computed_later_is_added_to_what_the_docs_have(tmp_path, write_page):
    first, second = TABLE.systems
    write_page([run for run in results() if run.job.system == first])
    shutil.rmtree(tmp_path / "results")
    text = write_page([run for run in results() if run.job.system == second])
    shutil.rmtree(tmp_path / "results")
    assert text == write_page(results())


def test_runs_of_other_versions_stay_if_their_system_has_no_new_ones(tmp_path, write_page, monkeypatch):
    first, second = TABLE.systems
    write_page(results(range(3)))
    shutil.rmtree(tmp_path / "results")
    monkeypatch.setattr(stored, "versions", lambda: VERSIONS | {"torch": "1.0"})
    text = write_page([run for run in results(range(3, 4)) if run.job.system == second])
    kept = read_record(tmp_path / "tables" / f"{TABLE.name}.json")
    assert {run.job.seed for run in kept if run.job.system == first} == {0, 1, 2}
    assert {run.job.seed for run in kept if run.job.system == second} == {3}
    assert "| torch | 1.0, 2.0 |" in text


def test_a_system_has_runs_of_one_device_alone(tmp_path, write_page):
    first, second = TABLE.systems
    write_page(results())
    shutil.rmtree(tmp_path / "results")
    of_gpu = [replace(run, job=replace(run.job, device="cuda")) for run in results(range(3))]
    text = write_page([run for run in of_gpu if run.job.system == second])
    assert f"- Trained on a GPU: {second}." in text
    kept = read_record(tmp_path / "tables" / f"{TABLE.name}.json")
    of = {system: [run for run in kept if run.job.system == system] for system in TABLE.systems}
    assert [{run.job.device for run in of[system]} for system in (first, second)] == [{"cpu"}, {"cuda"}]
    assert {run.job.seed for run in of[second]} == {0, 1, 2}
    assert all(run.settings["device"] == "cuda" for run in of[second])


def test_runs_of_other_settings_do_not_stay(tmp_path, write_page):
    first, second = TABLE.systems
    write_page([run for run in results() if run.job.system == first])
    record = tmp_path / "tables" / f"{TABLE.name}.json"
    document = json.loads(record.read_text(encoding="utf-8"))
    for chosen in document["settings"]:
        chosen["steps"] = 1
    write_record(record, document)
    shutil.rmtree(tmp_path / "results")
    text = write_page([run for run in results() if run.job.system == second])
    assert f"Not computed yet for this page: {first}." in text


def test_a_table_without_results_is_announced(write_page, tmp_path):
    write_page(results(range(2)))
    page.main(["--docs", str(tmp_path)], [TABLE, replace(TABLE, name="another", title="Another")])
    assert "## Another\n\nNot computed yet" in (tmp_path / "tables.md").read_text(encoding="utf-8")


def test_the_page_has_the_numbers_the_sentences_the_origin_and_the_papers_figures(tmp_path, write_page):
    text = write_page(results())
    summary = summarise(TABLE, results())
    for cell in summary.cells:
        assert f"{cell.mean:.1f} ± {cell.standard_error:.1f}" in text
    for each in summary.differences:
        assert f"{each.low:+.2f} to {each.high:+.2f}" in text
    for part in (
        "What twice the steps add to the baseline",
        TABLE.tuned,
        "The papers' own figures, on other data and models",
        TABLE.paper,
        "abacus",
    ):
        assert part in text
    for part in ("| date | 2026-01-02 |", "| torch | 2.0 |", "| commit | 0123456789 |", "| runs | 48 |"):
        assert part in text
    assert "| hours of computation, summed over the runs | 0.02 |" in text
    for picture in (f"{TABLE.name}.png", f"{TABLE.name}-relations.png"):
        assert f"(tables/{picture})" in text
        assert (tmp_path / "tables" / picture).exists()


def test_the_overview_has_what_holds_and_how_far_each_baseline_has_converged(write_page):
    overview = write_page(results()).split("## ")[1]
    summary = summarise(TABLE, results())
    for system in TABLE.systems:
        (row,) = (line for line in overview.splitlines() if f"| {system} |" in line)
        holding = [each for each in summary.primary if each.system == system and each.holds]
        assert all(f"{each.contrast} {each.mean:+.1f} ({each.column})" in row for each in holding)
        assert row.count("baseline +") == sum(each.mean > 0 and each.second == "baseline" for each in holding)
        assert ("nothing" in row) == (not holding)
        (longer,) = (e for e in summary.convergence if (e.system, e.column) == (system, "All"))
        assert f"All {longer.mean:+.1f}" in row
    assert any(each.holds for each in summary.primary)


def test_the_page_is_made_again_of_what_is_in_the_docs_alone(tmp_path, write_page):
    text = write_page(results())
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "tables.md").unlink()
    page.main(["--docs", str(tmp_path)], [TABLE])
    assert (tmp_path / "tables.md").read_text(encoding="utf-8") == text


def test_a_page_is_not_made_of_quick_runs_or_of_nothing(tmp_path, capsys, write_page):
    runs = [result(replace(run.job, size=QUICK), Outcome(run.outcome.metrics)) for run in results(range(2))]
    with pytest.raises(SystemExit):
        write_page(runs)
    assert "--from: expected full results of a table (made_up)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        page.main(["--docs", str(tmp_path)], [TABLE])
    assert "--docs: no results in" in capsys.readouterr().err
    assert not (tmp_path / "tables.md").exists()
