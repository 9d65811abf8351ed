"""A dry run needs nothing but the config: no data set, no weights, no vocabulary, no network."""

import importlib
import socket
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxreid.backbones import hub, word_table
from jaxreid.backbones.text import text_tokenizer
from jaxreid.backbones.tokenizer import load_tokenizer
from jaxreid.backbones.word_table import walkers_words
from jaxreid.errors import MissingFileError, UserError
from jaxreid.run.model import start_run
from jaxreid.training.dry_run import dry_run
from jaxreid.training.start import abstract_train_state

CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))


def presets(name):
    """All presets of a config, as it tells them to somebody who asks for another."""
    with pytest.raises(UserError) as error:
        importlib.import_module(f"configs.{name}").get_config("?")
    return str(error.value).partition("this config has ")[2].split(", ")


ALL = [(name, preset) for name in CONFIGS for preset in presets(name)]
# Of every method a preset that nothing drawn or packaged is enough for.
SOME = {
    (name, preset) for name, preset in ALL if preset in ("mars", "folder") or (name, preset) == ("lsmrl", "hitsz_vcm")
}


@pytest.fixture
def nothing(monkeypatch):
    """A machine without network, weights and vocabulary."""

    def refuse(*arguments, **_):
        raise MissingFileError(f"asked for {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(hub, "located", refuse)
    monkeypatch.setattr(word_table, "load_tokenizer", refuse)


def start_dry(name, preset, folder, data_dir, **changes):
    config = importlib.import_module(f"configs.{name}").get_config(preset)
    if config.dataset.name == "walkers":  # drawn where it is not there; drawing takes its time
        config.dataset.config = "tiny"
    else:
        data_dir = folder / "no data"
    config.update_from_flattened_dict(changes)
    return start_run(config, folder / "run", data_dir, dry=True)


@pytest.mark.parametrize(
    ("name", "preset"), [pytest.param(*at, marks=() if at in SOME else pytest.mark.extended) for at in ALL]
)
def test_every_preset(name, preset, tmp_path, data_dir, tiny, nothing):
    run = start_dry(name, preset, tmp_path, data_dir)
    for stage in run.method.stages():
        state, frozen = abstract_train_state(run, stage)
        assert jax.tree.leaves(state.params) and all(leaf.size for leaf in jax.tree.leaves((state.params, frozen)))
    assert not list(tmp_path.iterdir())


def test_it_says_what_it_planned_on(tmp_path, data_dir, nothing, capsys):
    start_dry("hitpro", "folder", tmp_path, data_dir)
    assert "a size that is assumed" in capsys.readouterr().out
    start_dry("tf_clip", "mars", tmp_path, data_dir)
    assert "the published size" in capsys.readouterr().out


@pytest.mark.extended
@pytest.mark.parametrize("at", ["clip_reid:mars", "lsmrl:hitsz_vcm", "vsla_clip:mars", "hitpro:folder"])
def test_steps_are_compiled(at, tmp_path, data_dir, tiny, nothing, capsys):
    dry_run(start_dry(*at.split(":"), tmp_path, data_dir))
    assert "PFLOP" in capsys.readouterr().out


def test_a_sentence_of_words_that_are_not_packaged_has_its_length(tmp_path, data_dir, nothing):
    """Training would ask for the vocabulary of the weights, and a dry run guesses a token for every word."""
    template = {"prompt.template": "A zebra X X X X at dusk."}
    assert len(start_dry("clip_reid", "mars", tmp_path, data_dir, **template).method.network.text[1].ids) == 11
    with pytest.raises(MissingFileError, match=r"weights\.pt"):
        text_tokenizer("ViT-B/16", "weights.pt")(template["prompt.template"])


def test_packaged_words_have_clip_s_ids(nothing):
    """Golden ids of OpenAI's tokenizer."""
    ids = text_tokenizer("ViT-B/16", "hf:openai/clip-vit-base-patch16")("A photo of a X X X X person.")
    expected = [49406, 320, 1125, 539, 320, 343, 343, 343, 343, 2533, 269, 49407]
    assert ids.shape == (1, 77) and ids[0, :12].tolist() == expected and not ids[0, 12:].any()
    assert text_tokenizer("walkers_vit_tiny") is walkers_words()


def test_they_are_those_of_the_whole_vocabulary():
    try:
        whole = load_tokenizer()
    except MissingFileError as error:
        pytest.skip(str(error))
    for config in ("clip_reid", "vsla_clip", "lsmrl"):
        template = importlib.import_module(f"configs.{config}").get_config("hitsz_vcm").prompt.template
        np.testing.assert_array_equal(text_tokenizer("ViT-B/16")(template), whole(template))
