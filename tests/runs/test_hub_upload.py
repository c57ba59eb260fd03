"""run.push_to_hub, with a stand-in for the Hub: no test may reach it."""

import dataclasses
import json
import logging
import types
from pathlib import Path

import huggingface_hub
import pytest
from toy_run import build, make_config

from jaxllm.config import reading as configs
from jaxllm.errors import InputError
from jaxllm.runs import curves, loop
from jaxllm.runs.directory import changes
from jaxllm.tasks import glue


@pytest.fixture
def hub(monkeypatch):
    """A Hub: what was asked of it, and the errors that it gives."""
    fake = types.SimpleNamespace(asked=[], token="hf_x", create=None, receive=None)

    class Api:
        def create_repo(self, repo, *, exist_ok):
            fake.asked.append(("create", repo, exist_ok))
            if fake.create is not None:
                raise fake.create

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            files = sorted(path.name for path in folder_path.iterdir())
            fake.asked.append(("upload", repo_id, files))
            # What a failed upload must not lose is there before it begins.
            assert (folder_path.parent / "summary.json").exists()
            if fake.receive is not None:
                raise fake.receive
            return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: fake.token)
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)
    return fake


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / "a run", **{"run.push_to_hub": "org/name", "train.steps": 2})


def never(config):
    raise AssertionError("built, though the Hub does not take the model")


def test_the_model_is_uploaded_at_the_end_and_where_is_said(hub, config, caplog):
    caplog.set_level(logging.INFO, "jaxllm")
    loop.run(build(config, before_step=lambda step: hub.asked.append(step)), config)
    assert hub.asked == [("create", "org/name", True), 1, 2, ("upload", "org/name", ["params.npz"])]
    assert "https://hub/org/name/commit/1" in caplog.text


def test_without_it_the_hub_is_not_asked(hub, config):
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, push_to_hub=None))
    loop.run(build(config), config)
    assert hub.asked == []


def test_a_missing_login_is_told_before_anything_is_built(hub, config):
    hub.token = None
    with pytest.raises(InputError, match=r"found org/name, but no login.*hf auth login"):
        loop.train(config, never)
    assert hub.asked == []


def test_a_repository_that_cannot_be_made_is_told_before_anything_is_built(hub, config):
    hub.create = RuntimeError("403 Forbidden: no rights in org\nsecond line")
    expected = r"org/name cannot be made.*RuntimeError: 403 Forbidden: no rights in org\)"
    with pytest.raises(InputError, match=expected):
        loop.train(config, never)


def test_a_failed_upload_loses_nothing_and_the_same_command_tries_again(hub, config, caplog):
    hub.receive = ConnectionError("the line is cut")
    summary = loop.run(build(config), config)
    directory = config.run.dir
    assert f"hf upload org/name '{directory}/model' ." in caplog.text
    assert "the line is cut" in caplog.text
    assert json.loads(Path(directory, "summary.json").read_text()) == summary
    hub.receive = None
    del hub.asked[:]
    caplog.set_level(logging.INFO, "jaxllm")
    assert loop.train(config, never) == summary
    assert [what for what, *_ in hub.asked] == ["create", "upload"]
    assert "https://hub/org/name/commit/1" in caplog.text


def test_a_run_may_be_uploaded_that_began_without():
    now = configs.to_yaml(configs.Config())
    assert "push_to_hub: null" in now
    assert changes(now, now.replace("push_to_hub: null", "push_to_hub: a/b")) == {}


def test_several_models_in_one_repository_are_refused(config):
    seeds = dataclasses.replace(config.run, seeds=[0, 1])
    model = configs.ModelConfig(path="w")
    data = configs.DataConfig(train=["a.csv"])
    several = dataclasses.replace(config, model=model, data=data, run=seeds)
    with pytest.raises(InputError, match=r"run\.push_to_hub: found 'org/name', expected null"):
        configs.check(several)
    with pytest.raises(InputError, match=r"run\.push_to_hub: expected null, as each task"):
        glue.run(dataclasses.replace(several, run=config.run), ["rte"])
