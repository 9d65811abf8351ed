"""The k-reciprocal encoding written plainly, with dense matrices and Python sets."""

import numpy as np

# Six unit vectors in the plane, by their angles; k1 = 4, k2 = 2, ties by row (unsupervised re-identification's rule).
ANGLES = np.array([0, 5, 10, 80, 85, 90])
GOLDEN = np.stack([np.cos(np.deg2rad(ANGLES)), np.sin(np.deg2rad(ANGLES))], axis=1).astype(np.float32)


def ranking(distance):
    return np.argsort(distance, axis=1, kind="stable")


def encoding(distance, rank, k, k_half, k2):
    """V f64[N, N] from distances [N, N] and their ranking; `k` and `k_half` count the row itself."""
    count = len(distance)

    def mutual(i, size):
        return [j for j in rank[i, :size] if i in rank[j, :size]]

    weights = np.zeros((count, count))
    for i in range(count):
        own = mutual(i, k)
        expanded = set(own)
        for candidate in own:
            half = mutual(candidate, k_half)
            if len(set(half) & set(own)) > 2 / 3 * len(half):
                expanded |= set(half)
        expanded = sorted(expanded)
        weight = np.exp(-distance[i, expanded])
        weights[i, expanded] = weight / weight.sum()
    return np.stack([weights[rank[i, :k2]].mean(axis=0) for i in range(count)])


def jaccard(weights):
    shared = np.minimum(weights[:, None], weights[None]).sum(axis=2)
    return np.maximum(1 - shared / (2 - shared), 0)


def unit_rows(features):
    features = np.asarray(features, np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def clustering_distance(features, k1, k2):
    """(V, Jaccard distance) as unsupervised re-identification clusters: k1 nearest, the row itself counted."""
    unit = unit_rows(features)
    squared = 2 - 2 * unit @ unit.T
    weights = encoding(squared, ranking(squared)[:, :k1], k1, min(round(k1 / 2) + 1, k1), k2)
    return weights, jaccard(weights)


def people(rng, count, per_person=12, dim=8, spread=0.5):
    """Features f32[count, dim] of people who look alike, each seen about `per_person` times, and who they are."""
    centres = rng.normal(size=(max(count // per_person, 1), dim))
    who = rng.integers(len(centres), size=count)
    return (centres[who] + spread * rng.normal(size=(count, dim))).astype(np.float32), who
