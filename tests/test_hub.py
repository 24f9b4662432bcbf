"""Runs on a hub, with a folder in its place."""

import json
import re
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import chex
import numpy as np
import pytest

import jaxvae
from jaxvae import _hub, data

SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (60, *SHAPE), dtype=np.uint8)
MINE = data.from_arrays("my <b>pictures</b>\n---\nlicense: evil", IMAGES, np.arange(60) % 2)


class Folder:
    """What `HfApi` is asked for, by a folder."""

    def __init__(self, root):
        self.root, self.private = root, None

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.private = private
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(oid="0123", message=commit_message)

    def snapshot_download(self, repo_id, *, revision, allow_patterns):
        out = self.root / "snapshots" / f"{revision}"
        out.mkdir(parents=True)
        for name in allow_patterns:
            shutil.copy(self.root / repo_id / name, out / name)
        return str(out)


def body():
    return jaxvae.MLPEncoder(2, hidden=(8,)), jaxvae.MLPDecoder(SHAPE, hidden=(8,))


@pytest.fixture(scope="module")
def run():
    encoder, decoder = body()
    embed = jaxvae.LabelEmbedding(2)
    model = jaxvae.CVAE(jaxvae.Conditioned(encoder), jaxvae.Conditioned(decoder), embed=embed)
    return jaxvae.train(model, MINE, epochs=2, progress=False)


@pytest.fixture
def hub(tmp_path):
    return Folder(tmp_path)


def test_a_pulled_run_is_the_pushed_one_to_the_bit(run, hub):
    assert run.push("me/mine", api=hub, private=True) == "0123"
    assert hub.private is True
    assert {path.name for path in (hub.root / "me" / "mine").iterdir()} == {"README.md", *_hub.FILES}
    again = jaxvae.pull("me/mine", revision="v1", api=hub)
    assert again.model == run.model
    chex.assert_trees_all_equal(again.params, run.params)
    assert (again.history, again.step) == (run.history, run.step)
    label = [0, 1, 1]
    np.testing.assert_array_equal(again.sample(3, condition=label, seed=5), run.sample(3, condition=label, seed=5))
    np.testing.assert_array_equal(again.encode(MINE), run.encode(MINE))
    assert again.evaluate(MINE, num_samples=2) == run.evaluate(MINE, num_samples=2)


def test_examples_stay_at_home_unless_they_are_asked_for(run, hub):
    run.push("me/mine", api=hub)
    assert not jaxvae.pull("me/mine", revision="a", api=hub).dataset.x.any()
    assert IMAGES[:1].tobytes() not in (hub.root / "me" / "mine" / "data.safetensors").read_bytes()
    run.push("me/mine", api=hub, examples=True)
    np.testing.assert_array_equal(jaxvae.pull("me/mine", revision="b", api=hub).dataset.x, run.dataset.x)


def test_the_card_says_what_was_measured(run, hub, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"test": {"nll": 86.551, "passed": True, "odd": float("nan")}}))
    run.push("me/mine", api=hub, results=tmp_path / "result.json", license="apache-2.0")
    card = (hub.root / "me" / "mine" / "README.md").read_text()
    head = card.split("---\n")[1]
    read = {name: json.loads(value) for name, value in re.findall(r"^([\w-]+): (.*)$", head, re.M)}
    assert read["library_name"] == "jaxvae"
    assert read["license"] == "apache-2.0"  # and not what the name of the data says
    assert {"jaxvae", "cvae"} < set(read["tags"])
    [result] = read["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "nll", "name": "-log p(x), nats", "value": 86.551}]
    assert result["dataset"]["name"] == MINE.name
    assert "| test | -log p(x), nats | 86.551 |" in card
    assert "<b>" not in card.split("---\n")[2]
    assert 'jaxvae.pull("me/mine")' in card


def test_without_results_the_card_has_the_evaluation_that_the_state_is_from(run, hub):
    run.push("me/mine", api=hub)
    card = (hub.root / "me" / "mine" / "README.md").read_text()
    [best] = [record for record in run.history if record["step"] == run.step]
    assert f"| validation | -ELBO, nats | {best['validation']['negative_elbo']:.5g} |" in card


def test_damage_is_found(run, hub):
    run.push("me/mine", api=hub)
    weights = hub.root / "me" / "mine" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(jaxvae.DamagedRunError, match=r"weights\.safetensors does not match its checksum"):
        jaxvae.pull("me/mine", revision="a", api=hub)


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (partial(run.push, "me/mine"), partial(jaxvae.pull, "me/mine")):
        with pytest.raises(ModuleNotFoundError, match=r"huggingface_hub: pip install 'jaxvae\[hub\]'"):
            call()


def test_the_real_package_has_the_calls_that_are_made():
    import inspect

    real = pytest.importorskip("huggingface_hub").HfApi
    for name in ("create_repo", "upload_folder", "snapshot_download"):
        wanted = set(inspect.signature(getattr(Folder, name)).parameters)
        assert wanted <= set(inspect.signature(getattr(real, name)).parameters)
    assert real(library_name="jaxvae").library_name == "jaxvae"


def test_every_value_of_a_card_is_read_as_what_it_is():
    yaml = pytest.importorskip("yaml", reason="needs the hub extra")
    values = {"tiny": 1e-05, "large": -1e20, "plain": 0.25, "whole": 3, "yes": True, "none": None}
    values |= {"face": "\U0001f600 \u00e9", "ends": '"}\n---\nx: 1', "several": [{"value": 2e-07}]}
    assert yaml.safe_load(f"head: {_hub._yaml(values)}") == {"head": values}
    assert json.loads(_hub._yaml({"a": 1e-05, "b": [1, "c"]})) == {"a": 1e-05, "b": [1, "c"]}
