"""TFDS builder of DanceVReID, from tracklet folders of one's own making."""

from __future__ import annotations

import tensorflow_datasets as tfds

from jaxreid.data.building.captioned_builder import CaptionedBuilder

from . import VERSION, settings


class Builder(CaptionedBuilder):
    """DanceVReID: dancers of groups in look-alike clothing, with captions; own construction.

    The authors of CG-CLIP published neither footage nor lists, so scores compare with none that are published.
    """

    VERSION = tfds.core.Version(VERSION)
    SETTINGS = staticmethod(settings)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
DanceVReID was not published. Tracklets of the same kind are cut from the annotations of a tracking data set such as
DanceTrack (github.com/DanceTrack/DanceTrack), which has a licence of its own:
  jaxreid mot-tracklets --train TRAIN_SEQUENCES --test VAL_SEQUENCES --out DIR
Captions come from a language model that sees pictures, a JSON line per tracklet; {CaptionedBuilder.EXPECTED}
Build it once with
  jaxreid build dance_vreid --source DIR"""
