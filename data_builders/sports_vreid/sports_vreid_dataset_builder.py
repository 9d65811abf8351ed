"""TFDS builder of SportsVReID, from tracklet folders of one's own making."""

from __future__ import annotations

import tensorflow_datasets as tfds

from jaxreid.data.building.captioned_builder import CaptionedBuilder

from . import VERSION, settings


class Builder(CaptionedBuilder):
    """SportsVReID: players of team sports in look-alike clothing, with captions; own construction.

    The authors of CG-CLIP published neither footage nor lists, so scores compare with none that are published.
    """

    VERSION = tfds.core.Version(VERSION)
    SETTINGS = staticmethod(settings)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
SportsVReID was not published. Tracklets of the same kind are cut from the annotations of a tracking data set such as
SportsMOT (github.com/MCG-NJU/SportsMOT), which has a licence of its own:
  jaxreid mot-tracklets --train TRAIN_SEQUENCES --test VAL_SEQUENCES --out DIR
Captions come from a language model that sees pictures, a JSON line per tracklet; {CaptionedBuilder.EXPECTED}
Build it once with
  jaxreid build sports_vreid --source DIR"""
