"""Another upload as the teacher: whose it may be, and what it holds on to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of


@pytest.fixture
def closed(serve: Callable[..., Api], two_keys: tuple[str, str]) -> Api:
    return serve(open_access=False)


def finetune(teacher: str, **distill: Any) -> list[dict[str, Any]]:
    return [{"step": "finetune", "distill": {"from": teacher, **distill}}]


def test_the_teacher_of_another_tenant_is_as_unknown_as_a_random_id(closed: Api, two_keys: tuple[str, str]) -> None:
    with closed.with_key(two_keys[0]) as mine, closed.with_key(two_keys[1]) as other:
        theirs = stories.ready_network(closed, other)
        spec = stories.a_spec(closed, mine, dataset=stories.ready_dataset(closed, mine))
        shown = []
        for teacher in (theirs, "net_" + "0" * 26, "net_x"):
            answer = mine.post("/jobs", json={**spec, "steps": finetune(teacher)})
            problem = {**problem_of(answer, 404, "not_found"), "request_id": ""}
            assert problem["errors"][0]["pointer"] == "/steps/0/distill/from"
            shown.append(problem)
        assert shown[0] == shown[1] == shown[2]
        assert mine.get("/jobs").json()["data"] == []


def test_a_teacher_is_ready_and_takes_and_gives_the_same(api: Api) -> None:
    dataset = stories.ready_dataset(api)
    spec = stories.a_spec(api, dataset=dataset)
    waiting = stories.upload_network(api.client, stories.a_pt2(b"waiting"))
    answer = api.client.post("/jobs", json={**spec, "steps": finetune(waiting)})
    problem_of(answer, 409, "not_ready")
    assert answer.headers["retry-after"]
    other = stories.NETWORK.outputs[0].model_copy(update={"shape": [None, 3]})
    stories.inspect_next(api.service.database, stories.NETWORK.model_copy(update={"outputs": [other]}))
    problem = problem_of(api.client.post("/jobs", json={**spec, "steps": finetune(waiting)}), 422, "invalid_spec")
    assert problem["errors"][0]["pointer"] == "/steps/0/distill/from"
    assert "The teacher's outputs are" in problem["errors"][0]["message"]
    rejected = stories.upload_network(api.client, stories.a_pt2(b"rejected"))
    stories.inspect_next(api.service.database, None)
    problem_of(api.client.post("/jobs", json={**spec, "steps": finetune(rejected)}), 422, "network_rejected")


def test_a_layer_to_learn_from_that_does_not_exist_is_named_with_the_nearest(api: Api) -> None:
    spec = stories.a_spec(api, dataset=stories.ready_dataset(api))
    steps = finetune("original", features=[{"layer": stories.NETWORK.layers[0].name + "x"}])
    problem = problem_of(api.client.post("/jobs", json={**spec, "steps": steps}), 422, "no_layer_matches")
    assert problem["errors"][0]["pointer"] == "/steps/0/distill/features/0/layer"
    assert stories.NETWORK.layers[0].name in problem["errors"][0]["message"]


def test_a_teacher_stays_as_long_as_a_job_names_it(api: Api) -> None:
    teacher = stories.ready_network(api)
    spec = stories.a_spec(api, dataset=stories.ready_dataset(api))
    job = api.client.post("/jobs", json={**spec, "steps": finetune(teacher)})
    assert job.status_code == 202, job.text
    problem_of(api.client.delete(f"/models/{teacher}"), 409, "in_use")
    assert api.client.post(f"/jobs/{job.json()['id']}/cancel").status_code == 202
    problem_of(api.client.delete(f"/models/{teacher}"), 409, "in_use")
    assert api.client.delete(f"/jobs/{job.json()['id']}").status_code == 204
    assert api.client.delete(f"/models/{teacher}").status_code == 204
