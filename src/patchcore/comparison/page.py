"""The report as one HTML page: styles, script, plots and pictures inside, nothing fetched."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from patchcore.comparison import plots
from patchcore.comparison.gallery import Case
from patchcore.comparison.recommendations import NO_WINNER, Recommendation
from patchcore.comparison.report import Chapter, Report
from patchcore.comparison.runs import Problem, Run
from patchcore.comparison.study import AVERAGE, Method, Row, Study
from patchcore.comparison.tables import MARKS, Cell, Table

_FOLDED = 12  # tables of more rows open on demand
_MARK_NAMES = {"best": "best", "tie": "tie", "unclear": "no clear winner"}


def html(report: Report) -> str:
    """The whole page."""
    assets = files("patchcore.comparison")
    chapters = list(enumerate(report.chapters, start=1))
    links = [f'<a href="#study{number}">{_text(chapter.study.title)}</a>' for number, chapter in chapters]
    links.append('<a href="#sources">Sources</a>')
    body = [f"<nav>{' '.join(links)}</nav>"]
    body += [_chapter(number, chapter) for number, chapter in chapters]
    body.append(_section("sources", "Sources", [_table(report.runs), _problems(report.problems)]))
    return Template((assets / "page.html").read_text(encoding="utf-8")).substitute(
        title=f"Comparison of {_text(str(report.root))}",
        style=(assets / "page.css").read_text(encoding="utf-8"),
        script=(assets / "page.js").read_text(encoding="utf-8"),
        body="\n".join(body),
    )


def _text(content: str) -> str:
    """Text as HTML; a number stays with its unit."""
    return re.sub(r"(\d) (?=%|px|×)", r"\1&nbsp;", escape(content))


def _chapter(number: int, chapter: Chapter) -> str:
    study = chapter.study
    parts = [_recommendations(chapter.recommended)]
    parts += [_table(table) for table in chapter.main]
    parts += [_plots(study, row) for row in study.rows]
    parts += [_gallery(study.labels[row], cases) for row, cases in chapter.gallery.items() if cases]
    parts += [_table(table) for table in chapter.further]
    return _section(f"study{number}", f"Test set: {study.title}", parts)


def _section(name: str, title: str, parts: Iterable[str]) -> str:
    return f'<section id="{name}"><h2>{_text(title)}</h2>{"".join(parts)}</section>'


def _recommendations(found: Sequence[Recommendation]) -> str:
    if not found:
        return ""
    return f'<h3>Recommendations</h3><dl class="cards">{"".join(map(_card, found))}</dl>'


def _card(one: Recommendation) -> str:
    figures = "".join(f"<li>{_text(figure)}</li>" for figure in one.figures)
    return (
        f'<div class="card{"" if one.winner else " open"}"><dt>{_text(one.heading)}</dt>'
        f"<dd><strong>{_text(one.winner or NO_WINNER)}</strong><ul>{figures}</ul></dd></div>"
    )


def _table(table: Table) -> str:
    if not table.rows:
        return f"<h3>{_text(table.title)}</h3><p>None.</p>"
    columns = zip(table.header, table.rows[0], strict=True)
    head = "".join(_header(name, is_text=cell.value is None) for name, cell in columns)
    averages = [row for row in table.rows if row[0].text == AVERAGE]
    body = "".join(_row(row) for row in table.rows if row not in averages)
    foot = f"<tfoot>{''.join(map(_row, averages))}</tfoot>" if averages else ""
    notes = "".join(f"<p>{_text(note)}</p>" for note in table.notes)
    content = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{_text(table.title)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table></div>{notes}"
    )
    if len(table.rows) > _FOLDED:
        return f"<details><summary><h3>{_text(table.title)}</h3></summary>{content}</details>"
    return f"<h3>{_text(table.title)}</h3>{content}"


def _header(name: str, *, is_text: bool) -> str:
    kind = ' class="words"' if is_text else ""
    return f'<th scope="col"{kind}><button type="button">{_text(name)}</button></th>'


def _row(cells: Sequence[Cell]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{_text(first.text)}</th>{"".join(map(_cell, others))}</tr>'


def _cell(cell: Cell) -> str:
    mark = f' <span class="mark" title="{_MARK_NAMES[cell.mark]}">{MARKS[cell.mark]}</span>' if cell.mark else ""
    detail = f"<small>{_text(cell.detail)}</small>" if cell.detail else ""
    attributes = f' class="{cell.mark}"' if cell.mark else ""
    if cell.value is not None:
        attributes += f' data-value="{"" if math.isnan(cell.value) else cell.value}"'
    if cell.source:
        attributes += f' title="{escape(cell.source)}"'
    return f"<td{attributes}>{_text(cell.text)}{mark}{detail}</td>"


def _plots(study: Study, row: Row) -> str:
    """The distributions of a category, a plot per method, and the ROC curves of all."""
    shown = [(method, run) for method in study.methods if (run := _scored(method, row))]
    if not shown:
        return f"<h3>Scores: {_text(study.labels[row])}</h3><p>No run kept its scores (--save_anomaly_scores).</p>"
    figures = [_distribution(method, run, row) for method, run in shown]
    labels = shown[0][1].scores[row.name].labels
    if labels.any() and not labels.all():
        figures.append(_roc(shown, row))
    key = (
        f'<ul class="key inline"><li class="good">{(~labels).sum()} good images, upwards</li>'
        f'<li class="defective">{labels.sum()} defective images, downwards</li></ul>'
    )
    return f'<h3>Scores: {_text(study.labels[row])}</h3>{key}<div class="plots">{"".join(figures)}</div>'


def _scored(method: Method, row: Row) -> Run | None:
    return next((run for run in method.runs_of(row) if row.name in run.scores), None)


def _distribution(method: Method, run: Run, row: Row) -> str:
    columns = run.rows[row.name]
    threshold = columns.get("threshold", math.nan)
    plot = plots.distribution(run.scores[row.name], threshold, f"Scores, {method.name}")
    effect = "no threshold: no training image was held out"
    if not math.isnan(threshold):
        effect = (
            f"the threshold catches {columns['defects_caught']:.0%} of the defective and rejects"
            f" {columns['false_rejects']:.0%} of the good images"
        )
    return f"<figure>{plot}<figcaption><b>{_text(method.name)}</b> ({_text(run.name)}): {effect}</figcaption></figure>"


def _roc(shown: Sequence[tuple[Method, Run]], row: Row) -> str:
    plot = plots.roc([(method.name, run.scores[row.name]) for method, run in shown], "ROC curves")
    keys = "".join(
        f'<li class="m{number % plots.COLOURS}">{_text(method.name)} ({_text(run.name)})</li>'
        for number, (method, run) in enumerate(shown)
    )
    return f'<figure class="roc">{plot}<figcaption><ul class="key">{keys}</ul></figcaption></figure>'


def _gallery(label: str, cases: Sequence[Case]) -> str:
    items = "".join(
        f'<button type="button" class="case" aria-label="Enlarge {_text(case.path)}">'
        f'<span class="name">{_text(case.path)}</span>{"".join(_panels(case))}</button>'
        for case in cases
    )
    return (
        f"<h3>Hardest images: {_text(label)}</h3>"
        "<p>Good images that score high, then defective ones that score low, by their mean rank over the methods."
        " Scores are normalised over the test set. Choose one to enlarge it.</p>"
        f'<div class="gallery">{items}</div>'
    )


def _panels(case: Case) -> Iterable[str]:
    for panel in case.panels:
        alt = (
            f"{panel.caption} of {case.path}"
            if panel.caption in ("image", "ground truth")
            else (f"heat map of {case.path} by {panel.caption}")
        )
        yield (
            f'<span class="panel"><img src="{panel.uri}" alt="{escape(alt)}" width="{panel.size[0]}"'
            f' height="{panel.size[1]}" loading="lazy"><span>{_text(panel.caption)}</span>'
            f"<small>{_text(panel.detail)}</small></span>"
        )


def _problems(problems: Sequence[Problem]) -> str:
    if not problems:
        return "<h3>Not in the tables</h3><p>Nothing: every run found is in the tables.</p>"
    items = "".join(f"<li><code>{_text(one.name)}</code>: {_text(one.reason)}</li>" for one in problems)
    return f"<h3>Not in the tables</h3><ul>{items}</ul>"
