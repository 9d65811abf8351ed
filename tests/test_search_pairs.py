"""`jaxreid embed` and `jaxreid search` with a run whose method scores pairs: the nearest, re-scored."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from messages import refuses, says
from pair_method import Pairs
from test_gallery_tools import rows_of, run_search

import jaxreid
from jaxreid.data.split import open_split
from jaxreid.errors import UserError
from jaxreid.methods.baseline import Baseline
from jaxreid.methods.method import Method
from jaxreid.retrieval import Gallery, add_to_gallery
from jaxreid.tools import embed

NEAREST, MIX = 5, 0.75


@pytest.fixture
def scoring(monkeypatch):
    """The baseline with the score of `Pairs`, of which its evaluation asks for the five nearest."""

    def evaluation(self):
        return dataclasses.replace(Method.evaluation(self), rescore_size=NEAREST, rescore_mix=MIX)

    def score(self, variables, memory, queries, gallery):
        return Pairs.pair_score(self, {"shift": 0.25}, memory, queries, gallery)

    monkeypatch.setattr(Baseline, "evaluation", evaluation)
    monkeypatch.setattr(Baseline, "pair_features", Pairs.pair_features)
    monkeypatch.setattr(Baseline, "pair_score", score)


def run_embed(workdir, data_dir, gallery, *more, split="gallery"):
    line = ["walkers/tiny", "--split", split, "--data_dir", str(data_dir), "--checkpoint", str(workdir)]
    return embed.main([*line, "--gallery", str(gallery), "--batch", "8", *more])


def pixels(workdir, frames):
    """Normalized as the network sees them."""
    look = json.loads((workdir / "config.json").read_text())["frames"]
    return (np.asarray(frames, np.float64) / 255 - np.array(look["mean"])) / np.array(look["std"])


def pair_score(query, gallery):
    """Of clips f64[T, H, W, 3], one query with each."""
    x, *others = (clip.mean(axis=(0, 1)) for clip in (query, *gallery))
    score = [-np.abs(x - np.roll(other, 1, axis=0) + 0.25).mean() + 0.1 * x.mean(0) @ other.mean(0) for other in others]
    return np.array(score) + 0.01 * np.array([len(clip) for clip in gallery])


def by_hand(cosine, pair):
    """(order, score) of all rows."""
    near = np.argsort(-cosine, kind="stable")
    score = np.where(np.isin(np.arange(len(cosine)), near[:NEAREST]), MIX * pair + (1 - MIX) * cosine, cosine)
    return [*sorted(near[:NEAREST], key=lambda row: -score[row]), *near[NEAREST:]], score


def test_a_search_is_re_scored(scoring, workdir, data_dir, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embed, "PAIR_BYTES", 1500)  # additions of a few tracklets each
    assert run_embed(workdir, data_dir, tmp_path / "g") == 0
    split, found = open_split(tiny, "gallery"), Gallery(tmp_path / "g")
    says(capsys.readouterr().out, "for pairs", "MiB", len(split), tmp_path / "g")
    reader, length = split.reader(cache=False), split.table.length
    clip = jaxreid.load(workdir)._rule.seq_len
    wanted = [range(n) if n <= clip else [i * n // clip for i in range(clip)] for n in length.tolist()]
    clips = [pixels(workdir, list(reader.decode_each(row, wanted[row]))) for row in range(len(split))]
    assert len(found.parts) > 2 and set(found.pairs) == {"rows", "tone", "long"}
    rows = np.array([len(split) - 1, 0, 3])
    kept = found.take_pairs(rows)
    np.testing.assert_allclose(kept["rows"], [clips[row].mean(axis=(0, 1)) for row in rows], atol=1e-5)
    assert kept["tone"].dtype == "bfloat16" and kept["long"].tolist() == [len(clips[row]) for row in rows]

    cosine, names = found[0 : len(found)] @ found[0 : len(found)].T, split.labels.names
    query = 5
    others = np.flatnonzero(np.arange(len(split)) != query)
    order, score = by_hand(cosine[query, others], pair_score(clips[query], [clips[row] for row in others]))
    plain = np.argsort(-cosine[query, others], kind="stable")
    assert list(plain[:NEAREST]) != order[:NEAREST]
    for top, more, expected in ((7, (), order), (6, ("--rescore=never",), plain)):
        assert run_search(found.directory, names[query], tmp_path / "p.html", "--top", str(top), *more) == 0
        printed = capsys.readouterr().out
        (table,) = rows_of(printed)
        assert [row[-1] for row in table] == [names[others[row]] for row in expected[:top]]
        said = f"{NEAREST} nearest"
        assert (said in printed) == (not more) and (said in (tmp_path / "p.html").read_text()) == (not more)
        if not more:
            assert [row[1] for row in table] == [f"{score[row]:.3f}" for row in order[:top]]

    picture = next(reader.decode_each(2, [0]))
    cv2.imwrite(str(tmp_path / "somebody.png"), picture[..., ::-1])
    assert run_search(found.directory, tmp_path / "somebody.png", tmp_path / "p.html", "--top", "3") == 0
    (table,) = rows_of(capsys.readouterr().out)
    feature = jaxreid.load(workdir, batch_size=8).embed(picture)
    order, score = by_hand(found[0 : len(found)] @ feature, pair_score(pixels(workdir, picture[None]), clips))
    assert [row[-1] for row in table] == [names[row] for row in order[:3]]
    np.testing.assert_allclose([float(row[1]) for row in table], score[order[:3]], atol=2e-3)


def test_what_does_not_fit_is_said(scoring, workdir, data_dir, tiny, tmp_path, capsys, monkeypatch):
    assert run_embed(workdir, data_dir, tmp_path / "plain", "--rescore=never") == 0
    assert not Gallery(tmp_path / "plain").pairs
    name = open_split(tiny, "gallery").labels.names[0]
    assert run_search(tmp_path / "plain", name, tmp_path / "p.html", "--rescore=always") == 2
    says(capsys.readouterr().err, tmp_path / "plain", "pairs", "--rescore=always")
    cv2.imwrite(str(tmp_path / "somebody.png"), np.random.default_rng(0).integers(0, 256, (64, 32, 3)))
    assert run_search(tmp_path / "plain", tmp_path / "somebody.png", tmp_path / "p.html") == 0
    says(capsys.readouterr().out, "not re-scored", "run")
    # A gallery stays what it is: more of it comes as it came before.
    assert run_embed(workdir, data_dir, tmp_path / "plain", split="query") == 0
    assert run_embed(workdir, data_dir, tmp_path / "plain", "--rescore=always", split="train") == 2
    says(capsys.readouterr().err, tmp_path / "plain", "without", "pairs", "new gallery")
    monkeypatch.setattr(Baseline, "pair_score", Method.pair_score)
    assert run_embed(workdir, data_dir, tmp_path / "other", "--rescore=always") == 2
    says(capsys.readouterr().err, workdir, "pairs", "--rescore=always")


def test_files_of_pairs_that_do_not_fit_are_named(tmp_path):
    known = [{"source": "s", "time": None, "camera": "c"}] * 2
    add_to_gallery(tmp_path, np.eye(2), known, pairs={"x": np.ones((2, 3), np.float32)})
    for other in (None, {"x": np.ones((2, 3), np.float16)}, {"y": np.ones((2, 3), np.float32)}):
        with refuses(UserError, tmp_path, "pairs: x", "new gallery"):
            add_to_gallery(tmp_path, np.eye(2), known, pairs=other)
    np.save(tmp_path / "000000.x.npy", np.ones((1, 3), np.float32))
    with pytest.raises(UserError, match=r"000000\.x\.npy is damaged"):
        Gallery(tmp_path).take_pairs(np.array([0]))
