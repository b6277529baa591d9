"""The graph opens without a network and shows every run."""

import json
import re
from dataclasses import replace
from pathlib import Path

from records import read_by, write_run
from twohop.lineage import InputFile, read_book
from twohop.provenance import graph_page
from twohop.provenance._graph import _depths


def _page() -> str:
    return graph_page(read_book().sorted())


def test_every_run_and_repository_file_is_a_box_and_every_use_an_edge(runs) -> None:
    page = _page()
    boxes = re.findall(r'<g class="box[^"]*" [^>]*data-id="([^"]+)"', page)
    assert sorted(boxes) == sorted([*(r.run_id for r in runs.values()), "file:data/models/late/projector.safetensors"])
    edges = re.findall(r'data-a="([^"]+)" data-b="([^"]+)"', page)
    assert len(edges) == len(set(edges)) == 6
    assert (runs["build_questions"].run_id, runs["plot_figures"].run_id) in edges


def test_makers_stand_left_of_readers_and_no_two_boxes_meet() -> None:
    page = _page()
    at = {i: (int(x), int(y)) for i, x, y in re.findall(r'data-id="([^"]+)" data-x="(\d+)" data-y="(\d+)"', page)}
    assert len(set(at.values())) == len(at)
    assert all(at[a][0] < at[b][0] for a, b in re.findall(r'data-a="([^"]+)" data-b="([^"]+)"', page))


def test_the_page_asks_for_nothing() -> None:
    page = _page()
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", page)
    assert not re.search(r"<(link|img|iframe)|<script[^>]* src=", page)


def test_text_from_records_is_escaped() -> None:
    write_run(Path("results/x"), "evil1", {"e.txt": "x"}, params={"x": "</script><script>alert(1)</script>"})
    page = _page()
    assert "<script>alert" not in page
    details = json.loads(re.search(r'id="details">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert details["evil1"]["params"]["x"].startswith("</script>")
    assert "code" not in details["evil1"]


def test_a_record_as_input_is_an_edge_from_its_run(runs) -> None:
    read = InputFile("lineages", "results/plot_figures/lineage.json", "0" * 64, None)
    write_run(Path("results/report"), "rep1", {"r.html": "x"}, [read])
    assert f'data-a="{runs["plot_figures"].run_id}" data-b="rep1"' in _page()


def test_a_run_whose_maker_is_not_drawn_shows_the_file() -> None:
    lost = replace(read_by(read_book().all["2222-prepare_model"])[0], run_id="gone")
    write_run(Path("results/use"), "use1", {"u.txt": "x"}, [lost])
    assert 'data-a="file:results/prepare_model/late/card.json" data-b="use1"' in _page()


def test_a_circle_does_not_hang() -> None:
    assert set(_depths([("a", "b"), ("b", "a")])) == {"a", "b"}


def test_no_runs_give_an_empty_page() -> None:
    assert "0 runs" in graph_page([])
