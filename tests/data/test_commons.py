"""Commons' API: batches, licences, authors, faults (promise F14, and F3, F5 for services)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_server import PictureServer, failing
from test_web import Naps, client
from wiki_server import World, image, mediawiki

from twohop.data._commons import CommonsPicture, accepted_licence, look_up, plain_text, plain_title
from twohop.data._web import Refused


@pytest.fixture
def server():
    with PictureServer() as running:
        yield running


@pytest.fixture
def world(server):
    made = World()
    server.replies["/api"] = mediawiki(made)
    return made


def found(server, *titles: str, naps=None, width=500) -> list[CommonsPicture]:
    with client(server, naps) as web:
        return list(look_up(web, titles, width, server.url("/api")))


def test_good_file_with_licence_author_and_page(server, world):
    world.files["Eiffel tower.jpg"] = image(server, "Eiffel tower.jpg")
    (picture,) = found(server, "File:Eiffel_tower.jpg")
    assert picture.reason == ""
    assert (picture.licence, picture.author) == ("CC BY-SA 4.0", "Ann & Bo")
    assert picture.source_page == "https://commons.wikimedia.org/wiki/File:Eiffel_tower.jpg"
    assert (picture.width, picture.height, picture.sha1) == (500, 333, None)
    assert picture.url.endswith("/thumb/Eiffel_tower.jpg")


def test_f05_fifty_titles_a_question_and_maxlag(server, world):
    titles = [f"Picture {i}.jpg" for i in range(120)]
    world.files.update({t: image(server, t) for t in titles})
    naps = Naps()
    pictures = found(server, *titles, naps=naps)
    assert [p.title for p in pictures] == titles
    assert [len(asked) for asked in world.asked_titles] == [50, 50, 20]
    assert all("maxlag=5" in path for path in server.asked)
    assert all("iiurlwidth=500" in path for path in server.asked)
    assert len([n for n in naps.slept if 0.1 < n <= 0.2]) == 2


def test_original_is_taken_where_it_is_no_wider_with_hash_and_size(server, world):
    small = {"width": 400, "height": 300, "sha1": "ab" * 20, "size": 1234}
    world.files["Small.jpg"] = image(server, "Small.jpg", **small)
    (picture,) = found(server, "Small.jpg")
    assert picture.url.endswith("/original/thumb/Small.jpg")
    assert (picture.sha1, picture.size_bytes, picture.width) == ("ab" * 20, 1234, 400)


def test_drawing_is_taken_as_its_thumbnail_even_if_it_is_small(server, world):
    world.files["Logo.svg"] = image(server, "Logo.svg", mime="image/svg+xml", width=100, height=100)
    world.files["Sound.ogg"] = image(server, "Sound.ogg", mime="audio/ogg", thumburl=None)
    logo, sound = found(server, "Logo.svg", "Sound.ogg")
    assert "/thumb/" in logo.url
    assert "/original/" not in logo.url
    assert sound.reason == "type 'audio/ogg' has no thumbnail"


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"LicenseShortName": None, "License": None}, "no licence is stated"),
        ({"LicenseShortName": "Fair use", "License": None}, "licence 'Fair use' is not accepted"),
        ({"LicenseShortName": "CC BY-NC 2.0", "License": "cc-by-nc-2.0"}, "licence 'CC BY-NC 2.0' is not accepted"),
        ({"Artist": None}, "CC BY-SA 4.0 without an author to credit"),
        ({"Artist": "<span style='display:none'>x</span>"}, "CC BY-SA 4.0 without an author to credit"),
    ],
)
def test_f14_unknown_licence_or_author_is_left_out(server, world, meta, reason):
    world.files["A.jpg"] = image(server, "A.jpg", meta=meta)
    (picture,) = found(server, "A.jpg")
    assert picture.reason == reason
    assert picture.url == ""


def test_f14_public_domain_needs_no_author(server, world):
    world.files["A.jpg"] = image(server, "A.jpg", meta={"LicenseShortName": "Public domain", "Artist": None})
    (picture,) = found(server, "A.jpg")
    assert (picture.reason, picture.licence, picture.author) == ("", "public domain", "unknown")


def test_absent_file_has_a_reason(server, world):
    (picture,) = found(server, "Nowhere.jpg")
    assert picture.reason == "no such file on Commons"


@pytest.mark.parametrize(
    ("short", "code", "licence"),
    [
        ("CC BY-SA 4.0", "cc-by-sa-4.0", "CC BY-SA 4.0"),
        ("CC BY 2.0", "cc-by-2.0", "CC BY 2.0"),
        ("CC BY-SA 3.0 de", "cc-by-sa-3.0-de", "CC BY-SA 3.0"),
        ("", "cc-by-sa-3.0", "CC BY-SA 3.0"),
        ("CC0", "cc0", "CC0"),
        ("Public domain", "pd", "public domain"),
        ("PD-old-100", "", "public domain"),
        ("CC BY-ND 2.0", "cc-by-nd-2.0", None),
        ("CC BY-NC-SA 2.0", "cc-by-nc-sa-2.0", None),
        ("GFDL", "gfdl", None),
        ("Copyrighted free use", "", None),
        ("", "", None),
        ("CC BY-SA 4.0", "cc-by-nc-2.0", None),
        ("CC BY-ND 4.0", "cc-by-4.0", None),
    ],
)
def test_f14_accepted_licences(short, code, licence):
    assert accepted_licence(short, code) == licence


def test_normalized_and_redirected_titles_come_back_under_the_asked_one(server, world):
    info = image(server, "New.jpg")
    tree = {
        "query": {
            "normalized": [{"from": "File:old name.jpg", "to": "File:Old name.jpg"}],
            "redirects": [{"from": "File:Old name.jpg", "to": "File:New.jpg"}],
            "pages": [{"title": "File:New.jpg", "imageinfo": [info]}],
        }
    }
    server.replies["/api"] = lambda h: h.send(json.dumps(tree).encode(), "application/json")
    (picture,) = found(server, "old name.jpg")
    assert (picture.title, picture.reason) == ("Old name.jpg", "")


def test_answer_in_two_parts_is_put_together(server, world):
    one, two = ({"title": f"File:{t}.jpg", "imageinfo": [image(server, f"{t}.jpg")]} for t in "AB")
    parts = [
        {"continue": {"iistart": "B", "continue": "||"}, "query": {"pages": [one, {"title": "File:B.jpg"}]}},
        {"query": {"pages": [{"title": "File:A.jpg"}, two]}},
    ]
    server.replies["/api"] = lambda h: h.send(json.dumps(parts["iistart" in h.path]).encode(), "application/json")
    assert [p.reason for p in found(server, "A.jpg", "B.jpg")] == ["", ""]


def test_f03_lag_and_cut_off_answers_are_asked_again(server, world):
    world.files["A.jpg"] = image(server, "A.jpg")
    good, faults = server.replies["/api"], []

    def reply(handler):
        faults.append(1)
        if len(faults) == 1:
            body = {"error": {"code": "maxlag", "info": "Waiting for a server: 7 seconds lagged", "lag": 7}}
            handler.send(json.dumps(body).encode(), "application/json", Retry_After="5")
        elif len(faults) == 2:
            handler.send(b'{"query": {"pages": [', "application/json")
        else:
            good(handler)

    server.replies["/api"], naps = reply, Naps()
    assert found(server, "A.jpg", naps=naps)[0].reason == ""
    assert [n for n in naps.slept if n >= 1] == [5, 2]


def test_other_errors_of_the_api_are_told(server):
    body = {"error": {"code": "badvalue", "info": "Unrecognized value"}}
    server.replies["/api"] = lambda h: h.send(json.dumps(body).encode(), "application/json")
    with pytest.raises(Refused, match="badvalue: Unrecognized value"):
        found(server, "A.jpg")
    server.replies["/api"] = failing(99, 403, b"")
    with pytest.raises(Refused, match="status 403"):
        found(server, "A.jpg")


def test_only_standard_widths(server):
    with pytest.raises(Refused, match="512 is no standard thumbnail width"):
        found(server, "A.jpg", width=512)


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("File:eiffel_tower.jpg", "Eiffel tower.jpg"),
        ("http://commons.wikimedia.org/wiki/Special:FilePath/Caf%C3%A9%20a.jpg", "Café a.jpg"),
        ("A", "A"),
        ("", ""),
    ],
)
def test_titles(title, plain):
    assert plain_title(title) == plain


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ('<a href="x">Ann</a><br>Bo', "Ann Bo"),
        ("<script>alert(1)</script>Ann", "Ann"),
        ("<style>p{}</style><p>Ann</p>", "Ann"),
        ('<span style="display: none;">hidden<br>too</span>Ann', "Ann"),
        ("Ann &lt;b&gt;", "Ann <b>"),
        ("a < b", "a < b"),
        ("<a title='>'>Ann", "Ann"),
    ],
)
def test_f14_html_is_stripped(html, text):
    assert plain_text(html) == text


@given(st.text())
def test_f14_stripping_never_fails(html):
    assert "<script" not in plain_text(html).lower() or "&lt;" in html.lower() or "&#" in html
