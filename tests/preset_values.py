"""The values of every preset as a table, `preset_values.json`: what a change of an overlay does to all presets is seen.

python tests/preset_values.py       writes the table anew, to be looked at as a difference
"""

import json
from pathlib import Path

from jaxreid.config import config_module, flatten, packaged_configs

TABLE = Path(__file__).with_suffix(".json")


def resolved():
    """{config: {key: the value of all presets, or {preset: value}}}, as JSON."""
    found = {}
    for path in packaged_configs():
        module = config_module(path)
        values = {preset: dict(flatten(module.get_config(preset).to_dict())) for preset in module.PRESETS}
        found[path.stem] = {}
        for key in sorted({key for each in values.values() for key in each} - {"preset"}):
            of_key = {preset: each.get(key) for preset, each in values.items()}
            same = all(value == next(iter(of_key.values())) for value in of_key.values())
            found[path.stem][key] = next(iter(of_key.values())) if same else of_key
    return json.loads(json.dumps(found))


if __name__ == "__main__":
    lines = [
        f'"{config}": {{\n'
        + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        + "\n}"
        for config, values in resolved().items()
    ]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
