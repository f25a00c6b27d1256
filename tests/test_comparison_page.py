"""The HTML report: what is in the file, and how it behaves in a real Chromium."""

import html.parser
import re

import numpy as np
import pytest

from browser import CHROMIUM, Browser
from hand_made import BANK_SETTINGS, FLOW_RUN, drawn_scores, write_run
from patchcore.cli.compare import compare_results
from patchcore.comparison.gallery import MOST, PICTURES, affordable, hardest
from patchcore.comparison.plots import distribution, roc_points
from patchcore.comparison.report import make_report
from patchcore.comparison.runs import find_runs
from patchcore.comparison.study import studies_of
from patchcore.comparison.write import write_report

MARKUP = '<img src=x onerror=alert(1)> & " <script>'
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH (Debian: apt install chromium)"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of three contenders over two seeds on two categories, and a run cut short; names are full of HTML."""
    root = tmp_path_factory.mktemp("comparison")
    results = root / "results"
    for seed in (0, 1):
        for fraction in (0.1, 0.01):
            method = {"name": "bank", "title": "Bank", "short_name": f"Bank {fraction} {MARKUP}"}
            config = {"method": method, "settings": {**BANK_SETTINGS, "fraction": fraction}, "command": MARKUP}
            name = f"bank {fraction} <b>&{seed}"
            write_run(results / name, quality=1 + 10 * fraction, seed=seed, pictures=True, config=config)
        write_run(results / f"flow{seed}", quality=1, seed=seed, pictures=True, config=FLOW_RUN)
    (write_run(results / "cut <b>") / "results.csv").unlink()
    write_report(make_report(results, None), root / "report")
    return root / "report" / "report.html"


class Page(html.parser.HTMLParser):
    """The tags of a page, and whether they close in order."""

    EMPTY = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self._open = [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag


def test_the_page_is_one_well_formed_file_that_fetches_nothing(report):
    text = report.read_text()
    page = Page(text)
    assert len(text) < 10_000_000
    addresses = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert all(re.match(r"data:|#", address) for address in addresses)
    assert not re.search(r"https?://|@import|url\(", text)


def test_no_name_becomes_html(report):
    for text in (report.read_text(), report.with_suffix(".md").read_text()):
        assert not re.search(r"<b>&|<img src=x|<b></|<script> *[,|<]", text)
        assert "&lt;img src=x onerror=alert(1)&gt; &amp; " in text
    tags = {tag for tag, _ in Page(report.read_text()).tags}
    assert "b" in tags  # of the plots' captions
    assert not [attributes for _, attributes in Page(report.read_text()).tags if "onerror" in attributes]


def test_every_picture_says_what_it_shows(report):
    tags = Page(report.read_text()).tags
    pictures = [attributes["alt"] for tag, attributes in tags if tag == "img"]
    assert all(pictures)
    assert {alt.split(" of ")[0] for alt in pictures} == {"image", "ground truth", "heat map"}
    plots = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(plots) == 2 * (3 + 1)  # per category a distribution for each of three methods, and the ROC curves
    assert [tag for tag, _ in tags].count("desc") == len(plots)


def test_the_gallery_shows_every_method_beside_image_and_mask(report):
    text = report.read_text()
    cases = re.findall(r'<button type="button" class="case".*?</button>', text, re.DOTALL)
    assert len(cases) == 2 * 2 * MOST  # two categories of more than `MOST` good and defective test images
    for case in cases:
        captions = re.findall(r'loading="lazy"><span>(.*?)</span>', case)
        assert captions[:2] == ["image", "ground truth"]
        assert [caption.split()[0] for caption in captions[2:]] == ["Bank", "Bank", "Flow"]


def test_the_hardest_good_images_score_highest_and_the_hardest_defective_lowest(report):
    (run, *_), _ = find_runs(report.parents[1] / "results")
    scores = run.scores["mpdd_plate"]
    ranks = scores.scores.argsort().argsort()
    chosen = hardest(ranks, scores.labels, MOST)
    left = [i for i in range(len(ranks)) if scores.labels[i] and i not in chosen]
    assert len(chosen) == MOST
    assert max(scores.scores[chosen]) <= min(scores.scores[left])
    assert scores.labels[chosen].all()


def test_many_categories_and_methods_show_fewer_images_each(tmp_path):
    for number in range(30):
        write_run(tmp_path / "few" / "run", categories=("plate",))
        categories = tuple(f"part{part}" for part in range(10))
        config = {"settings": {**BANK_SETTINGS, "fraction": (number + 1) / 100}}
        write_run(tmp_path / "many" / f"run{number}", categories=categories, scores=False, config=config)
    most = {name: affordable(studies_of(find_runs(tmp_path / name)[0], {})) for name in ("few", "many")}
    assert most == {"few": MOST, "many": PICTURES // (10 * 2 * (2 + 30))}


def test_a_damaged_or_missing_picture_is_named_and_left_out(tmp_path, shell):
    folder = write_run(tmp_path / "results" / "run", categories=("plate",), pictures=True)
    hardest_good = sorted((folder / "segmentation_images" / "mpdd_plate").glob("*_good_*"), key=score_in_name)[-2:]
    hardest_good[0].write_bytes(b"no picture")
    hardest_good[1].unlink()
    ended = shell(compare_results, tmp_path / "results", "--output", tmp_path / "report")
    assert ended.code == 0, ended.err
    for path, reason in zip(hardest_good, ("cannot read", "missing"), strict=True):
        name = f"run/segmentation_images/mpdd_plate/{path.name}"
        assert any(name in line and reason in line for line in ended.out.splitlines())


def score_in_name(path):
    return float(path.stem.rpartition("_score")[2])


def test_bytes_that_are_no_utf_8_are_escaped(tmp_path):
    name = "Pr\udcffung"  # as Python reads a file name with the byte 0xff
    config = {"command": name, "method": {"name": "bank", "title": "Bank", "short_name": name}}
    write_run(tmp_path / "results" / "run", categories=("plate",), config=config)
    write_report(make_report(tmp_path / "results", None), tmp_path / "report")
    for file in ("report.html", "report.md", "tables/runs.csv"):
        assert "Pr\\udcffung" in (tmp_path / "report" / file).read_text()


def test_roc_corners_by_hand():
    scores, labels = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    assert roc_points(scores, labels) == [(0, 0), (0, 0.5), (0.5, 1), (1, 1)]  # the tie moves both at once


def test_the_threshold_in_the_plot_says_what_it_does(tmp_path):
    write_run(tmp_path / "run", categories=("plate",))
    (run,), _ = find_runs(tmp_path)
    values = drawn_scores(2.0, 0)
    threshold = run.rows["mpdd_plate"]["threshold"]
    plot = distribution(run.scores["mpdd_plate"], threshold, "a & b")
    assert "<title>a &amp; b</title>" in plot
    assert f"catches {(values[8:] > threshold).sum()} of the defective and rejects 0 of the good ones" in plot
    heights = {
        name: sum(map(float, re.findall(rf'class="{name}"[^>]* height="([\d.]+)"', plot)))
        for name in ("good", "defective")
    }
    assert heights["good"] == pytest.approx(heights["defective"], abs=2)  # shares of each class sum to the same
    assert 'class="threshold"' not in distribution(run.scores["mpdd_plate"], float("nan"), "none")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@needs_chromium
class TestInChromium:
    @pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
    def test_it_opens_without_errors_and_fits_the_window(self, browser, report, width, dark):
        browser.open(report, width=width, dark=dark)
        assert browser.errors == []
        assert {address.split(":")[0] for address in browser.requests} <= {"file", "data"}
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("[...document.images].every(image => image.loading === 'lazy' || image.naturalWidth > 0)")

    def test_dark_and_light_differ_and_both_can_be_read(self, browser, report):
        colours = {}
        for dark in (False, True):
            browser.open(report, dark=dark)
            colours[dark] = [
                browser.run(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
            ]
            ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours[dark])
            assert abs(ink - paper) > 150
            assert (ink > paper) == dark
        assert colours[False] != colours[True]

    def test_a_click_on_a_header_sorts_and_the_average_stays_below(self, browser, report):
        browser.open(report)
        table = "[...document.querySelectorAll('table')].find(table => table.tFoot)"
        values = f"[...{table}.tBodies[0].rows].map(row => Number(row.cells[1].dataset.value))"
        header = f"{table}.tHead.rows[0].cells[1]"
        before = browser.run(values)
        browser.click(f"{header}.querySelector('button')")
        assert browser.run(f"{header}.ariaSort") == "descending"
        assert browser.run(values) == sorted(before, reverse=True)
        browser.click(f"{header}.querySelector('button')")
        assert browser.run(f"{header}.ariaSort") == "ascending"
        assert browser.run(values) == sorted(before)
        browser.click(f"{table}.tHead.rows[0].cells[0].querySelector('button')")
        names = browser.run(f"[...{table}.tBodies[0].rows].map(row => row.cells[0].textContent)")
        assert names == sorted(names)
        assert browser.run(f"{header}.ariaSort") is None
        assert browser.run(f"{table}.rows[{table}.rows.length - 1].cells[0].textContent") == "Average"
        assert browser.errors == []

    def test_a_click_opens_the_gallery_and_keys_lead_on(self, browser, report):
        browser.open(report)
        names = browser.run("[...document.querySelectorAll('.case .name')].map(name => name.textContent)")
        shown = "viewer.querySelector('.name').textContent"
        assert browser.run("viewer.open") is False
        browser.click("document.querySelectorAll('.case')[1]")
        assert browser.run("viewer.open") is True
        assert browser.run(shown) == names[1]
        assert browser.run("viewer.querySelectorAll('img').length") == 2 + 3
        browser.press("ArrowRight")
        assert browser.run(shown) == names[2]
        browser.press("ArrowLeft")
        browser.press("ArrowLeft")
        assert browser.run(shown) == names[0]
        browser.click("viewer.querySelector('[data-step=\"-1\"]')")
        assert browser.run(shown) == names[-1]
        browser.press("Escape")
        assert browser.run("viewer.open") is False
        browser.click("document.querySelectorAll('.case')[0]")
        browser.click("viewer.querySelector('[data-close]')")
        assert browser.run("viewer.open") is False
        assert browser.errors == []

    def test_paper_shows_what_is_folded(self, browser, report):
        browser.open(report)
        assert browser.run("[...document.querySelectorAll('details')].some(fold => !fold.open)")
        assert browser.pdf().startswith(b"%PDF")
        assert browser.run("[...document.querySelectorAll('details')].every(fold => fold.open)")
        assert browser.errors == []

    def test_errors_would_be_noticed(self, browser, tmp_path):
        page = tmp_path / "broken.html"
        page.write_text("<script>nothing.here</script><img src='missing.png'>")
        browser.open(page)
        assert any("nothing is not defined" in error for error in browser.errors)
        assert len(browser.errors) >= 2
