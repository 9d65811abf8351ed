"""Speed of jaxreid.retrieval beside what others do for the same result, as JSON lines.

    python benchmarks/retrieval.py [--cases evaluation re-ranking clustering search] [--sizes small mars large]
                                   [--no-peers] [--repeats 3] [--out FILE]

    evaluation   score() at 1980 × 9330 × 768 (MARS) and 10k × 100k; the bare distance matrix; torchreid's formula
    re-ranking   5k and 20k rows; the dense k-reciprocal re-ranking
    clustering   10k and 20k rows; faiss neighbours, dense Jaccard distance and scikit-learn's DBSCAN
    search       1M × 512; faiss flat

Every contender runs in a process of its own and gets the same arrays. `seconds` is the best of the repeats, after
compiling (`compile_seconds`, the first run less the best); `cpu_seconds` is the work of all threads, which another
load on the machine changes less; `peak_mb` is how far the process grew while it ran;
`load` is the machine's load average, `result` a figure that contenders must share. Needs the extras test and search.
"""

import argparse
import functools
import json
import multiprocessing
import os
import resource
import sys
import time

import numpy as np

from jaxreid.files import expand

# (queries, gallery, width) for evaluation and search; rows and width for the others.
SIZES = {
    "evaluation": {"small": (400, 2000, 256), "mars": (1980, 9330, 768), "large": (10_000, 100_000, 256)},
    "re-ranking": {"small": (1000, 256), "mars": (5000, 512), "large": (20_000, 512)},
    "clustering": {"small": (1000, 256), "mars": (10_000, 512), "large": (20_000, 512)},
    "search": {"small": (100, 50_000, 128), "mars": (1000, 200_000, 512), "large": (1000, 1_000_000, 512)},
}


def people(rows: int, width: int, seed: int, per_person: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Unit features f32[rows, width] of people seen about `per_person` times, and who they are."""
    centres = np.random.default_rng(0).standard_normal((max(rows // per_person, 1), width), np.float32)
    rng = np.random.default_rng(seed)
    who = rng.integers(0, len(centres), rows)
    features = centres[who] + 2.5 * rng.standard_normal((rows, width), np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True), who


# ------------------------------------------------------------------------------------------------- evaluation


@functools.cache
def evaluation_data(queries, gallery, width):
    (q, who), (g, other) = people(queries, width, 1), people(gallery, width, 2)
    who %= gallery // 20
    rng = np.random.default_rng(3)
    return q, g, who, other, rng.integers(0, 6, queries), rng.integers(0, 6, gallery)


def evaluation_ours(*size):
    from jaxreid import retrieval

    q, g, who, other, camera, other_camera = evaluation_data(*size)
    rows, columns = retrieval.Rows(who, camera), retrieval.Rows(other, other_camera)
    return retrieval.score(q, g, rows, columns, "market").mAP


def evaluation_matmul(*size):
    """The product of ready unit features alone, in blocks of the size that score() takes."""
    import jax
    import jax.numpy as jnp

    from jaxreid.retrieval import distances

    q, g, *_ = evaluation_data(*size)
    gallery, product = jnp.asarray(g), jax.jit(lambda query, gallery: query @ gallery.T)
    block = distances.block_rows(None, len(g))
    for start in range(0, len(q), block):
        last = product(q[np.minimum(np.arange(start, start + block), len(q) - 1)], gallery).block_until_ready()
    return float(last[0, 0])


def evaluation_torchreid(*size):
    """The sorted-matches formula of torchreid's Python evaluation, query by query."""
    q, g, who, other, camera, other_camera = evaluation_data(*size)
    precisions = []
    for start in range(0, len(q), 1000):
        distance = 1 - q[start : start + 1000] @ g.T
        order = np.argsort(distance, axis=1)
        for row, ranked in enumerate(order, start):
            kept = ranked[~((other[ranked] == who[row]) & (other_camera[ranked] == camera[row]))]
            matches = other[kept] == who[row]
            if matches.any():
                hits = np.cumsum(matches)
                precisions.append(((hits / np.arange(1, len(hits) + 1)) * matches).sum() / matches.sum())
    return 100 * float(np.mean(precisions))


# ------------------------------------------------------------------------------------------------- re-ranking


def reranking_ours(rows, width):
    from jaxreid import retrieval

    x, _ = people(rows, width, 1)
    total = 0.0
    for numbers, block in retrieval.k_reciprocal_blocks(x[: rows // 5], x[rows // 5 :]):
        total += float(block[: len(numbers)].mean(axis=1).sum())
    return total / (rows // 5)


def dense_encoding(squared, rank, k, k_half, k2):
    """V f32[N, N] as released programs make it: a dense matrix, filled row by row."""
    rows = len(squared)

    def mutual(i, size):
        forward = rank[i, :size]
        return forward[(rank[forward, :size] == i).any(axis=1)]

    halves = [mutual(i, k_half) for i in range(rows)]
    weights = np.zeros((rows, rows), np.float32)
    for i in range(rows):
        own = mutual(i, k)
        expanded = own
        for candidate in own:
            half = halves[candidate]
            if len(np.intersect1d(half, own)) > 2 / 3 * len(half):
                expanded = np.append(expanded, half)
        expanded = np.unique(expanded)
        weight = np.exp(-squared[i, expanded])
        weights[i, expanded] = weight / weight.sum()
    return np.stack([weights[rank[i, :k2]].mean(axis=0) for i in range(rows)]) if k2 > 1 else weights


def dense_jaccard(weights, rows):
    """Jaccard distances f32[rows, N] of the first rows, by inverted lists of the dense matrix's columns."""
    inverted = [np.flatnonzero(weights[:, i]) for i in range(len(weights))]
    found = np.zeros((rows, len(weights)), np.float32)
    for i in range(rows):
        shared = np.zeros(len(weights), np.float32)
        for column in np.flatnonzero(weights[i]):
            shared[inverted[column]] += np.minimum(weights[i, column], weights[inverted[column], column])
        found[i] = 1 - shared / (2 - shared)
    return found


def reranking_dense(rows, width):
    x, _ = people(rows, width, 1)
    squared = np.maximum(2 - 2 * x @ x.T, 0)
    squared /= squared.max(axis=1, keepdims=True)
    rank = np.argsort(squared, axis=1)
    queries = rows // 5
    jaccard = dense_jaccard(dense_encoding(squared, rank, 21, 11, 6), queries)
    return float((0.7 * jaccard + 0.3 * squared[:queries])[:, queries:].mean())


# ------------------------------------------------------------------------------------------------- clustering


def clustering_ours(rows, width):
    from jaxreid import retrieval

    labels = retrieval.cluster(people(rows, width, 1)[0], 0.6, 4)
    return [int(labels.max()) + 1, int((labels < 0).sum())]


def clustering_faiss_sklearn(rows, width):
    """faiss for neighbours, the dense Jaccard distance of released clustering code, scikit-learn's DBSCAN."""
    import faiss
    from sklearn.cluster import DBSCAN

    x, _ = people(rows, width, 1)
    index = faiss.IndexFlatIP(width)
    index.add(x)
    rank = index.search(x, 30)[1]
    distance = np.maximum(dense_jaccard(dense_encoding_of_neighbours(x, rank), rows), 0)
    labels = DBSCAN(eps=0.6, min_samples=4, metric="precomputed").fit_predict(distance)
    return [int(labels.max()) + 1, int((labels < 0).sum())]


def dense_encoding_of_neighbours(x, rank):
    """`dense_encoding` with distances computed for the entries alone, as released clustering code does."""

    class Squared:
        def __len__(self):
            return len(x)

        def __getitem__(self, place):
            i, columns = place
            return 2 - 2 * x[columns] @ x[i]

    return dense_encoding(Squared(), rank, 30, 16, 6)


# ----------------------------------------------------------------------------------------------------- search


@functools.cache
def search_data(queries, gallery, width):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((gallery, width), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x[:queries] + 0.1 * rng.standard_normal((queries, width), np.float32), x


def search_ours(*size):
    from jaxreid import retrieval

    queries, gallery = search_data(*size)
    return int(retrieval.search_gallery(queries, gallery, 10).index.sum())


@functools.cache
def faiss_index(*size):
    import faiss

    index = faiss.IndexFlatIP(size[2])
    index.add(search_data(*size)[1])
    return index


def search_faiss(*size):
    """Ready index: what it took to fill is not counted."""
    queries, _ = search_data(*size)
    return int(faiss_index(*size).search(queries / np.linalg.norm(queries, axis=1, keepdims=True), 10)[1].sum())


# -------------------------------------------------------------------------------------------------- measuring

CONTENDERS = {
    "evaluation": {"jaxreid": evaluation_ours, "distance matmul": evaluation_matmul, "torchreid": evaluation_torchreid},
    "re-ranking": {"jaxreid": reranking_ours, "dense": reranking_dense},
    "clustering": {"jaxreid": clustering_ours, "faiss + scikit-learn": clustering_faiss_sklearn},
    "search": {"jaxreid": search_ours, "faiss flat": search_faiss},
}
PREPARED = {"evaluation": evaluation_data, "search": search_data}  # made before the clock starts


def measure(case, name, size, repeats, answer):
    function = CONTENDERS[case][name]
    if name in ("jaxreid", "distance matmul"):
        import jaxreid.retrieval  # noqa: F401  (what importing takes is not counted)
    PREPARED.get(case, people)(*size, *(() if case in PREPARED else (1,)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, processor, result = [], [], None
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        result = function(*size)
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = {"seconds": min(times), "cpu_seconds": min(processor)}
    answer.put({**seconds, "compile_seconds": times[0] - min(times), "peak_mb": peak, "result": result})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--sizes", nargs="+", choices=("small", "mars", "large"), default=["mars"])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--repeats", type=int, default=3, help="of what compiles; peers in plain NumPy run once")
    parser.add_argument("--out", type=expand, help="file to append the lines to")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for case in arguments.cases:
        for label in arguments.sizes:
            ours = None
            for name in list(CONTENDERS[case])[: 1 if arguments.no_peers else None]:
                size, answer = SIZES[case][label], spawn.SimpleQueue()
                repeats = arguments.repeats if name in ("jaxreid", "distance matmul", "faiss flat") else 1
                process = spawn.Process(target=measure, args=(case, name, size, repeats, answer))
                process.start()
                process.join()
                found = {} if answer.empty() else answer.get()
                row = {"case": case, "contender": name, "size": size, **found}
                if not found:
                    row["failed"] = f"exit code {process.exitcode}"  # out of memory, for instance
                ours = found.get("seconds") if name == "jaxreid" else ours
                if found and ours and name != "jaxreid":
                    row["times_jaxreid"] = found["seconds"] / ours
                row |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
                line = json.dumps(row, default=float)
                print(line, flush=True)
                if arguments.out:
                    with open(arguments.out, "a", encoding="utf-8") as file:
                        print(line, file=file)


if __name__ == "__main__":
    sys.exit(main())
