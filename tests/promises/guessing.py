"""P31: somebody guesses ids of another tenant, everywhere in the OpenAPI where one can stand, and learns nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import httpx

from models.ids import new_id
from tests.api import stories, tus
from tests.api.serving import Api
from tests.api.two_tenants import (
    DOCUMENT,
    IDS_IN_QUERIES,
    OPERATIONS,
    PREFIXES,
    WITH_AN_ID,
    Owned,
    one_of_everything,
)
from tests.promises.outcome import Outcome
from tests.promises.place import Place

Ids = Mapping[str, str]
VARIANTS: tuple[Mapping[str, str], ...] = (
    {},
    {"Accept": "text/event-stream"},
    {"Accept": "text/html"},
    {"Range": "bytes=0-0"},
    {"If-None-Match": "*"},
    {"Idempotency-Key": "shared"},
)
NEVER_THE_SAME = {"date", "x-request-id"}


class Question(NamedTuple):
    """`request` makes the arguments of `httpx.Client.request` out of ids, which are another tenant's in `ids`.
    `may_be_none`: what is no id is answered as one that nobody has, and not with what an id looks like there."""

    ids: Ids
    request: Callable[[Ids], dict[str, Any]]
    may_be_none: bool = True


def ids_of_another_tenant(place: Place, injections: int) -> Outcome:
    """Each is the same 404 as an id that nobody has and as one that is none, and nothing changes for its owner. Never
    less than one round over the whole OpenAPI; the guesses of each round are others."""
    outcome, chance = Outcome(), random.Random(31)
    keys = place.keys("a", "b")
    api = place.served()
    with api.with_key(keys[0]) as mine, api.with_key(keys[1]) as other:
        owned = one_of_everything(api, mine)
        questions = [*_in_paths(owned), *_in_queries(owned), *_in_bodies(api, other, owned)]
        before = _everything(mine, owned)
        for number in range(max(injections, len(questions))):
            question = questions[number % len(questions)]
            none = _malformed(question.ids, chance) if question.may_be_none else _unknown(question.ids)
            guesses = (question.ids, _unknown(question.ids), none)
            theirs, *others = (_seen(other.request(**question.request(ids)), ids) for ids in guesses)
            asked = question.request(question.ids)
            outcome.require(theirs[0] == 404, f"{asked} was answered {theirs}")
            outcome.require(others == [theirs, theirs], f"{asked} was answered {theirs}, and what never was {others}")
            outcome.injections += 1
        outcome.require(_everything(mine, owned) == before, "its owner finds something changed")
        outcome.require(other.get("/jobs").json()["data"] == [], "a guess made a job")
    return outcome


def _in_paths(owned: Owned) -> Iterator[Question]:
    for path, method in WITH_AN_ID:
        for status, job in owned.jobs.items():
            ids = {name: value for name, value in {**owned.ids, "job_id": job}.items() if f"{{{name}}}" in path}
            for variant in VARIANTS if status == "succeeded" else ({},):
                yield Question(ids, _at(path, method, variant))
            if "{job_id}" not in path:
                break


def _at(path: str, method: str, variant: Mapping[str, str]) -> Callable[[Ids], dict[str, Any]]:
    content: dict[str, Any] = {"headers": {**tus.VERSION, **variant}}
    if method == "patch":
        content = {"content": b"x", "headers": {**tus.PART, "Upload-Offset": "7", **variant}}
    elif method == "post":
        content["json"] = {}
    return lambda ids: {"method": method.upper(), "url": path.format(**ids), **content}


def _in_queries(owned: Owned) -> Iterator[Question]:
    for path, method in OPERATIONS:
        for parameter in DOCUMENT["paths"][path][method].get("parameters", []):
            field = parameter["name"]
            if parameter["in"] == "query" and (name := IDS_IN_QUERIES.get(field)):
                yield Question({name: owned.ids[name]}, _queried(path, method, field, name))


def _queried(path: str, method: str, field: str, name: str) -> Callable[[Ids], dict[str, Any]]:
    return lambda ids: {"method": method.upper(), "url": path, "params": {field: ids[name]}}


def _in_bodies(api: Api, other: httpx.Client, owned: Owned) -> Iterator[Question]:
    network, dataset = stories.ready_network(api, other), stories.ready_dataset(api, other)
    own = {"model": network, "dataset": dataset, "steps": [stories.PRUNE]}
    places: dict[str, Callable[[str], dict[str, Any]]] = {
        "model_id": lambda asked: {"model": asked},
        "dataset_id": lambda asked: {"dataset": asked},
    }
    for name, place in places.items():
        yield Question({name: owned.ids[name]}, lambda ids, name=name, place=place: _job(own | place(ids[name])))  # type: ignore[misc]

    def taught(ids: Ids) -> dict[str, Any]:
        return _job(own | {"steps": [{"step": "finetune", "distill": {"from": ids["model_id"]}}]})

    yield Question({"model_id": owned.ids["model_id"]}, taught, may_be_none=False)


def _job(spec: dict[str, Any]) -> dict[str, Any]:
    return {"method": "POST", "url": "/jobs", "json": spec, "headers": {"Idempotency-Key": "shared"}}


def _unknown(ids: Ids) -> dict[str, str]:
    """Ids of the same shape that nobody has."""
    return {name: new_id(PREFIXES[name]) if name in PREFIXES else value for name, value in ids.items()}


def _malformed(ids: Ids, chance: random.Random) -> dict[str, str]:
    """As somebody writes who has seen one: too long, too short, in capitals, of another kind."""
    change = chance.choice((lambda text: text + "0", lambda text: text[:-1], str.upper, lambda text: f"x{text[1:]}"))
    return {name: change(value) if name in PREFIXES else value for name, value in ids.items()}


def _seen(response: httpx.Response, asked: Ids) -> tuple[Any, ...]:
    """An answer without what differs between two answers to one question: the time, its own id, the ids asked for."""
    headers = {name: value for name, value in response.headers.items() if name not in NEVER_THE_SAME}
    text = response.text.replace(response.headers["x-request-id"], "REQUEST")
    for name, value in asked.items():
        text = text.replace(value, name)
        headers = {header: said.replace(value, name) for header, said in headers.items()}
    return response.status_code, headers, text


def _everything(client: httpx.Client, owned: Owned) -> list[tuple[Any, ...]]:
    """What its owner sees."""
    found = []
    for path, method in WITH_AN_ID:
        for job in owned.jobs.values():
            if method in ("get", "head"):
                response = client.request(method, path.format(**{**owned.ids, "job_id": job}), headers=tus.VERSION)
                found.append(_seen(response, {}))
    return found
