"""The viewer answers the user's own page and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse
from starlette.testclient import TestClient

from deepspace.core.errors import InputError
from deepspace.io.memory import slide_from_array
from deepspace.viewer.app import FILES, STATIC, make_app
from deepspace.viewer.columns import Measured
from deepspace.viewer.project import PointSet, Project, ViewImage, ViewSection
from deepspace.viewer.tiles import TileSource

TOKEN, HOST = "the-secret-of-this-run", "127.0.0.1:8000"
SECRET_NAME = "patient-Jane-Doe"
UP = [
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..\\..\\windows\\win.ini",
    "..%5c..%5cwin.ini",
    "%252e%252e%252fetc%252fpasswd",
    "....//....//etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "%00",
    "a%00.jpg",
    "~root",
    "$HOME",
    "CON",
    "%c0%ae%c0%ae/",
]
PLACES = [
    "/{}",
    "/static/{}",
    "/api/images/{}",
    "/api/images/{}/0/0_0.jpg",
    "/api/sets/{}/points",
    "/api/sets/{}/values?layer=predicted&gene=A",
    "/api/genes?set={}",
]
ODD_TILES = [
    *("-1/0_0", "0/-1_0", "0/0_-1", "99/0_0", "0/1_0", "0/0_9", "9" * 400 + "/0_0", "1e3/0_0"),
    *("0/nan_0", "0/0_0.5", "0/0_0.png", "0x1/0_0", "٣/0_0", "0/0_0/../../1"),
]
HOSTS = [
    *("evil.example", "127.0.0.1", "127.0.0.1:80", "localhost.evil.example:8000", "[::1]:8000"),
    *("", "127.0.0.1:8000@evil.example", "0.0.0.0:8000", "127.0.0.1:8000 ", "LOCALHOST.:8000"),
]
TOO_MUCH = b"[" * (1 << 20) + b"]"


@pytest.fixture(scope="module")
def project() -> Project:
    image = np.full((300, 400, 3), 200, np.uint8)
    slide = slide_from_array(image, 0.5, Path(f"/data/{SECRET_NAME}.svs"), "test")
    counts = AnnData(
        sparse.csr_matrix(np.eye(9, 4)), obsm={"spatial": np.arange(18.0).reshape(9, 2)}
    )
    points = PointSet("measured", Measured(counts), 5.0)
    image = ViewImage("H&E", TileSource(slide))
    return Project("test", [ViewSection("S1", 0.0, image, [], [points])])


@pytest.fixture
def stranger(project: Project) -> Iterator[TestClient]:
    app = make_app(project, TOKEN, {HOST})
    with TestClient(app, base_url=f"http://{HOST}", follow_redirects=False) as client:
        yield client


@pytest.fixture
def known(stranger: TestClient) -> TestClient:
    assert stranger.get("/", params={"token": TOKEN}).status_code == 303
    return stranger


def refused(answer: Any) -> None:
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:200])
    told = answer.text
    assert SECRET_NAME not in told
    assert "Traceback" not in told
    assert "root:" not in told
    assert str(STATIC) not in told


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", UP)
def test_no_name_leads_to_a_file(known: TestClient, place: str, name: str) -> None:
    refused(known.get(place.format(name)))
    refused(known.get(place.format(quote(name, safe=""))))


@pytest.mark.parametrize("tile", ODD_TILES)
def test_tiles_that_are_not_there(known: TestClient, project: Project, tile: str) -> None:
    image = project.sections[0].image.id
    refused(known.get(f"/api/images/{image}/{tile}.jpg"))


@pytest.mark.parametrize("host", HOSTS)
def test_other_host_names_are_not_served(known: TestClient, host: str) -> None:
    refused(known.get("/api/project", headers={"Host": host}))
    refused(known.get("/", params={"token": TOKEN}, headers={"Host": host}))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"https://{HOST}"},
        {"Origin": "http://127.0.0.1:8001"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_other_sites_may_not_ask(known: TestClient, headers: dict[str, str]) -> None:
    refused(known.get("/api/project", headers=headers))
    refused(known.post("/api/sets/x/region", headers=headers, json={}))


@pytest.mark.parametrize("path", ["/", "/app.js", "/api/project", "/api/genes?set=x", "/nothing"])
@pytest.mark.parametrize(
    "way",
    [
        {},
        {"headers": {"X-Deepspace-Token": "wrong"}},
        {"headers": {"X-Deepspace-Token": TOKEN[:-1]}},
        {"headers": {"X-Deepspace-Token": TOKEN + " "}},
        {"headers": {"Cookie": "deepspace-view-8000=wrong"}},
        {"headers": {"Cookie": f"other={TOKEN}"}},
        {"headers": {"Cookie": f"deepspace-view-8000={TOKEN[:5]}"}},
        {"headers": {"Cookie": "a" * 3000}},
        {"headers": {"Authorization": f"Bearer {TOKEN}"}},
    ],
)
def test_without_the_token_nothing_is_told(
    stranger: TestClient, path: str, way: dict[str, Any]
) -> None:
    refused(stranger.get(path, **way))


@pytest.mark.parametrize("token", ["", "wrong", TOKEN.upper(), TOKEN + "x", "%00", TOKEN[1:]])
def test_a_wrong_token_opens_nothing(stranger: TestClient, token: str) -> None:
    answer = stranger.get("/", params={"token": token})
    refused(answer)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_refused(known: TestClient, method: str) -> None:
    refused(known.request(method, "/api/project"))


def test_too_much_is_refused(known: TestClient) -> None:
    refused(known.post("/api/sets/x/region", content=TOO_MUCH))
    refused(known.post("/api/project", content=TOO_MUCH))
    refused(known.get("/api/genes", params={"set": "x" * 5000}))
    refused(known.get("/" + "a/" * 3000))
    refused(known.get("/api/project", headers={"Content-Length": "-1"}))
    refused(known.get("/api/project", headers={"Content-Length": "9" * 30}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"polygon": null}',
        b'{"polygon": [[0,0],[1,1]]}',
        b'{"polygon": [[0,0],[1,1],["a",2]]}',
        b'{"polygon": [[0,0],[1,1],[NaN,2]]}',
        b'{"polygon": [[0,0],[1,1],[1e999,2]]}',
        b'{"polygon": [[1' + b"0" * 400 + b",0],[1,1],[2,0]]}",
        b'{"polygon": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"polygon": [[0,0],[1,1],[2,0]], "name": "\\ud800"}',
        b'{"polygon": [[9000,9000],[9001,9000],[9001,9001]]}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("kind", ["", ".csv"])
def test_areas_that_make_no_sense(
    known: TestClient, project: Project, body: bytes, kind: str
) -> None:
    (points,) = project.sets
    refused(known.post(f"/api/sets/{points}/region{kind}", content=body))


def test_what_a_file_says_of_itself_stays_here(
    known: TestClient, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: TileSource, *where: int) -> bytes:
        raise InputError(f"/data/{SECRET_NAME}.svs: tile is damaged")

    monkeypatch.setattr(TileSource, "cut", damaged)
    refused(known.get(f"/api/images/{project.sections[0].image.id}/3/0_0.jpg"))


def test_the_page_itself_is_served_with_its_guards(known: TestClient) -> None:
    for name in FILES:
        answer = known.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "http://" not in answer.headers["content-security-policy"]
    assert known.get("/api/project").status_code == 200
    assert {FILES[name][0] for name in FILES} | {"openseadragon.LICENSE.txt"} == {
        path.name for path in STATIC.iterdir()
    }
