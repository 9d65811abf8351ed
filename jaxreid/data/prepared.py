"""A prepared data set on disk: what was noted of it, and whether it is whole. Nothing here needs TFDS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxreid.errors import DataSetError
from jaxreid.files import read_json

SCALE, REFUSE = SIXTEEN_BIT = ("scale", "refuse")  # what a build does with 16-bit pictures


def unfinished_directory(prepared: Path) -> Path:
    """Where a build through Beam keeps the files of a set until all of them are whole."""
    return prepared.with_name(f"unfinished.{prepared.name}")


def is_prepared(path: Path) -> bool:
    """Whether a path is the directory of a built set."""
    return (path / "dataset_info.json").is_file()


def read_metadata(prepared: Path) -> dict[str, Any]:
    """What a builder noted of its set (protocol, cameras, identities, counts, …); read without TFDS."""
    return _described(prepared, "metadata.json") if (prepared / "metadata.json").exists() else {}


def camera_names(facts: dict[str, Any]) -> dict[int, str]:
    """Number → name of the cameras that the metadata of a set name."""
    return {int(camera["number"]): str(camera["name"]) for camera in facts.get("cameras", ())}


def split_counts(prepared: Path) -> dict[str, int]:
    """Tracklets per split of a prepared set, in the order of the splits."""
    info = _described(prepared, "dataset_info.json")
    return {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}


def _described(prepared: Path, file: str) -> dict[str, Any]:
    """What a file in JSON says of a prepared set."""
    return read_json(prepared / file, f"delete {prepared} and run again, it is then built anew")


def is_current(prepared: Path, fingerprint: str | None) -> bool:
    """Whether a set is there, whole, and made with what would make it now."""
    if not prepared.exists():
        return False
    missing = _missing_files(prepared)
    if missing:
        raise DataSetError(
            f"{prepared} is not a whole data set: {', '.join(missing[:5])} missing or empty "
            f"({len(missing)} files). Was it copied in part? Delete the directory and run again"
        )
    file_format = _described(prepared, "dataset_info.json")["fileFormat"]
    if file_format != "array_record":
        raise DataSetError(
            f"{prepared} was written as {file_format}, which cannot be read here: delete the directory and run again "
            "(or `tfds build` with --file_format=array_record)"
        )
    return fingerprint is None or read_metadata(prepared).get("fingerprint") == fingerprint


def _missing_files(prepared: Path) -> list[str]:
    description = ["dataset_info.json", "features.json"]
    missing = [file for file in description if not (prepared / file).is_file()]
    if missing:
        return missing
    info = _described(prepared, "dataset_info.json")
    shards = []
    for split in info["splits"]:
        count = len(split["shardLengths"])
        stem = f"{info['name']}-{split['name']}.{info['fileFormat']}"
        shards += [f"{stem}-{shard:05d}-of-{count:05d}" for shard in range(count)]
    return [file for file in shards if not (prepared / file).is_file() or not (prepared / file).stat().st_size]
