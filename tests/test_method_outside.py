"""A method in a package of its own, named by its dotted path; what results state comes from declarations."""

import sys
from typing import ClassVar

import pytest
from messages import refuses
from ml_collections import ConfigDict

from jaxreid.errors import UserError
from jaxreid.methods.baseline import Baseline
from jaxreid.methods.method import Backbone, Method, find_method


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`mine`, with a module for each case."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "good.py").write_text(
        "from jaxreid.methods.baseline import Baseline\nclass Mine(Baseline):\n    pass\nMETHOD = Mine\n"
    )
    (folder / "empty.py").write_text("")
    (folder / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_a_method_of_another_package_is_found(package):
    method = find_method("mine.good")
    assert issubclass(method, Baseline) and method is not Baseline


def test_a_method_in_a_file_of_its_own_is_found(package, tmp_path):
    (tmp_path / "alone.py").write_text((tmp_path / "mine" / "good.py").read_text())
    assert issubclass(find_method("alone"), Baseline)
    assert find_method("baseline") is Baseline  # the package's own come first


def test_what_is_no_method_is_named(package):
    with refuses(UserError, "mine.none", "no module"):
        find_method("mine.none")
    with refuses(UserError, "nobodys.method", "no module"):
        find_method("nobodys.method")
    with refuses(UserError, "mine.empty", "METHOD"):
        find_method("mine.empty")
    with refuses(UserError, "'triplets'", "jaxreid/methods/triplets.py"):
        find_method("triplets")


def test_what_a_method_imports_in_vain_is_not_hidden(package):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        find_method("mine.broken")


def test_what_results_state_comes_from_declarations():
    class Captioned(Method):
        uses_captions = True
        assumes: ClassVar = {"groups": "grouping.by"}

        def backbones(self):
            weights = self.config.backbone.checkpoint
            return Backbone(("a",), weights, None), Backbone(("b",), weights, None)

    config = ConfigDict({"grouping": {"by": "recording"}, "backbone": {"checkpoint": "walkers_vit_tiny"}})
    method = Captioned(config, None)
    assert method.assumptions() == {"identity labels": "no", "captions": "yes", "groups": "recording"}
    unsupervised, captions, card = method.notes()
    assert unsupervised == "No identity label was used." and captions.startswith("Captions")
    assert "other drawn people" in card  # once, though two backbones start from these weights
    config.backbone.checkpoint = "my/weights.safetensors"
    assert len(method.notes()) == 2
