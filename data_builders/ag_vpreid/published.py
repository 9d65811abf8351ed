"""How large AG-VPReID's challenge release is; importable without TFDS."""

from typing import Any

# Counted on its attribute tables; tracklets and frames are published in rounded numbers only.
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {"identities": 689, "cameras": 6},
    "query_case1": {"identities": 645},
    "gallery_case1": {"identities": 645},
    "query_case2": {"identities": 645},
    "gallery_case2": {"identities": 1309},
}
