"""The addresses that the page in the browser asks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deepspace import __version__
from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.viewer.guard import Guard, TooLargeError
from deepspace.viewer.neighbours import describe_point
from deepspace.viewer.project import PointSet, Project, ViewSection
from deepspace.viewer.region import (
    RegionError,
    describe_region,
    parse_drawn,
    region_geojson,
    region_table,
)
from deepspace.viewer.tiles import TILE

STATIC = Path(__file__).parent / "static"
# the only files that are ever served
SCRIPTS = ("api", "app", "colours", "marks", "panel", "points", "search", "side")
FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    **{
        f"{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in (*SCRIPTS, "openseadragon.min")
    },
}
UNITS = {
    "predicted": "log1p CP10k",
    "measured": "log1p CP10k",
    "both": "log1p CP10k",
    "sd": "sd of log1p CP10k",
    "ood": "times the usual distance",
    "cluster": "",
}
MOST_LISTED = 200
DAY = "private, max-age=86400"


def make_app(project: Project, token: str, hosts: set[str]) -> Guard:
    """Application that shows a project to whoever holds the token.

    Parameters
    ----------
    project : Project
        What is shown.
    token : str
        Secret of this run.
    hosts : set of str
        Host headers that are answered, such as ``127.0.0.1:8765``.
    """
    pages = Pages(project)
    routes = [
        Route("/api/project", pages.project),
        Route("/api/genes", pages.genes),
        Route("/api/images/{image}", pages.image),
        Route("/api/images/{image}/{level:int}/{column:int}_{row:int}.jpg", pages.tile),
        Route("/api/sets/{points}/points", pages.points),
        Route("/api/sets/{points}/values", pages.values),
        Route("/api/sets/{points}/point/{index:int}", pages.point),
        Route("/api/sets/{points}/region", pages.region, methods=["POST"]),
        Route("/api/sets/{points}/region.csv", pages.region_csv, methods=["POST"]),
        Route("/api/sets/{points}/region.geojson", pages.region_geojson, methods=["POST"]),
        *(Route(f"/{name}", _static(name)) for name in FILES),
    ]
    refusals: dict[Any, Callable[[Request, Exception], Response]] = {
        HTTPException: _refused,
        RegionError: lambda request, error: _error(422, str(error)),
        InputError: _unreadable,
        TooLargeError: lambda request, error: _error(413, "the request is too large"),
        Exception: lambda request, error: _error(500, "deepspace has a bug here; see its log"),
    }
    app = Starlette(routes=routes, exception_handlers=refusals)
    app.router.redirect_slashes = False  # an address is right or it is not there
    return Guard(app, token, hosts)


class Pages:
    """Answers from a project; what takes time runs in threads."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def project(self, request: Request) -> Response:
        """Sections, images and point sets."""
        del request
        project = self._project
        return JSONResponse(
            {
                "title": project.title,
                "version": __version__,
                "sections": [section.describe() for section in project.sections],
            }
        )

    def genes(self, request: Request) -> Response:
        """Genes of a set whose names hold a text; the best predicted first."""
        _, one = self._set(request.query_params.get("set", ""))
        text = request.query_params.get("q", "").strip().casefold()
        limit = min(_whole(request.query_params.get("limit", "50")), MOST_LISTED)
        var = one.values.var
        score = var[keys.SCORE].to_numpy(float) if keys.SCORE in var else np.zeros(len(var))
        order = np.argsort(-np.nan_to_num(score, nan=-2.0), kind="stable")
        names = [str(name) for name in var.index]
        found = [k for k in order if text in names[k].casefold()]
        found.sort(key=lambda k: not names[k].casefold().startswith(text))
        return JSONResponse(
            {"genes": [_gene(one, int(k)) for k in found[:limit]], "total": len(found)}
        )

    def image(self, request: Request) -> Response:
        """Size and pixel size of an image."""
        tiles = self._image(request).tiles
        return JSONResponse(
            {
                "width": tiles.width,
                "height": tiles.height,
                "tile_size": TILE,
                "overlap": 0,
                "max_level": tiles.max_level,
                "mpp": tiles.mpp,
            }
        )

    def tile(self, request: Request) -> Response:
        """One DeepZoom tile."""
        where = (request.path_params[name] for name in ("level", "column", "row"))
        try:
            data = self._image(request).tiles.tile(*where)
        except IndexError:
            raise HTTPException(404, "there is no such tile") from None
        return Response(data, media_type="image/jpeg", headers={"cache-control": DAY})

    def points(self, request: Request) -> Response:
        """Places, x and y in turn, float32."""
        _, one = self._set(request.path_params["points"])
        return _binary(one.values.coords.astype("<f4"), {"cache-control": DAY})

    def values(self, request: Request) -> Response:
        """A layer at every point, float32, with the range to show it in."""
        _, one = self._set(request.path_params["points"])
        layer = request.query_params.get("layer", "")
        gene = request.query_params.get("gene")
        try:
            values = one.layer(layer, gene)
            low, high = one.limits(layer, gene, values)
        except KeyError:
            raise HTTPException(404, "there is no such layer or gene") from None
        unit = "probability" if one.kind == "clusters" and layer == "predicted" else UNITS[layer]
        headers = {"x-low": f"{low:.6g}", "x-high": f"{high:.6g}", "x-unit": unit}
        return _binary(values.astype("<f4"), headers)

    def point(self, request: Request) -> Response:
        """All that is known of one point."""
        section, one = self._set(request.path_params["points"])
        index, gene = request.path_params["index"], request.query_params.get("gene")
        try:
            return JSONResponse(describe_point(self._project, section, one, index, gene))
        except (IndexError, KeyError):
            raise HTTPException(404, "there is no such point or gene") from None

    async def region(self, request: Request) -> Response:
        """What distinguishes an area that the user has drawn."""
        section, one = self._set(request.path_params["points"])
        drawn = parse_drawn(await request.body())
        return JSONResponse(await run_in_threadpool(describe_region, section, one, drawn))

    async def region_csv(self, request: Request) -> Response:
        """Table of its genes."""
        _, one = self._set(request.path_params["points"])
        drawn = parse_drawn(await request.body())
        table = await run_in_threadpool(region_table, one, drawn)
        return _download(table.to_csv(index=False), "text/csv", "region.csv")

    async def region_geojson(self, request: Request) -> Response:
        """Its outline, for QuPath."""
        self._set(request.path_params["points"])
        content = json.dumps(region_geojson(parse_drawn(await request.body())))
        return _download(content, "application/geo+json", "region.geojson")

    def _set(self, name: str) -> tuple[ViewSection, PointSet]:
        if name not in self._project.sets:
            raise HTTPException(404, "there is no such set of points")
        return self._project.sets[name]

    def _image(self, request: Request) -> Any:
        name = request.path_params["image"]
        if name not in self._project.images:
            raise HTTPException(404, "there is no such image")
        return self._project.images[name]


def _static(name: str) -> Callable[[Request], Response]:
    file, kind = FILES[name]

    def serve(request: Request) -> Response:
        del request
        return Response((STATIC / file).read_bytes(), media_type=kind)

    return serve


def _gene(one: PointSet, row: int) -> dict[str, Any]:
    found = one.values.var.iloc[row]
    return {
        "name": str(one.values.var.index[row]),
        "verdict": str(found.get(keys.VERDICT, "")) or None,
        "score": _finite(found.get(keys.SCORE)),
        "low": _finite(found.get(keys.SCORE_LOW)),
        "high": _finite(found.get(keys.SCORE_HIGH)),
        "ceiling": _finite(found.get(keys.CEILING)),
    }


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _whole(text: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise HTTPException(400, "limit must be a whole number")
    return int(text)


def _binary(values: np.ndarray[Any, Any], headers: dict[str, str]) -> Response:
    return Response(
        np.ascontiguousarray(values).tobytes(),
        media_type="application/octet-stream",
        headers=headers,
    )


def _download(text: str, kind: str, name: str) -> Response:
    return Response(
        text, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'}
    )


def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail))


def _unreadable(request: Request, error: Exception) -> Response:
    # its text names files
    log.error("%s: %s", request.url.path, error)
    return _error(422, "a file of this section cannot be read; see the log of deepspace view")


def _error(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)
