"""What the benchmarks' reports share: rows, targets, and whether other work disturbed a run."""

from harness import number

BUSY, DISTURBED = 0.5, 0.1
"""Load average at the start, and cores that others kept busy during the timings, from which these
are not to be trusted."""


def busy(load: float, other_work: float | None = None) -> bool:
    """Whether other work disturbed the timings."""
    return load > BUSY or (other_work or 0.0) > DISTURBED


def pick(rows: list[dict], **equal) -> list[dict]:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in equal.items())]


def best_ours(rows: list[dict]) -> float | None:
    """ms of our fastest among the rows; None where none was measured."""
    return min((row["ms"] for row in rows if row["kind"] == "ours" and "ms" in row), default=None)


def losses(rows: list[dict], same: tuple[str, ...], where) -> list[str]:
    """Every row in which a peer is faster than our fastest with the ``same`` columns equal;
    ``where(row)`` names the case."""
    found = []
    for row in rows:
        if row["kind"] != "peer" or "ms" not in row:
            continue
        best = best_ours(pick(rows, **{key: row[key] for key in same}))
        if best is None or row["ms"] < best:
            ours = "refused or not measured" if best is None else f"{number(best)} ms"
            found.append(f"{where(row)}: {row['contender']} {number(row['ms'])} ms, ours {ours}")
    return found


def target(text: str, bound: str, need: float, value: float | None) -> dict:
    """A target and what this run measured; ``bound`` is "at least" or "at most", met is None where
    nothing was measured."""
    met = None
    if value is not None:
        met = value >= need if bound == "at least" else value <= need
    return {"target": text, "bound": bound, "need": need, "measured": value, "met": met}


def times(row: dict) -> list[str]:
    """Cells: ms, p20, p80, GB/s, share of copy_."""
    if "ms" not in row:
        return ["-"] * 5
    cells = [number(row[key]) for key in ("ms", "p20_ms", "p80_ms", "gb_per_s")]
    return [*cells, percent(row["share_of_copy"])]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def summary(document: dict, where) -> str:
    """Targets, losses and what the gate refused; ``where(row)`` names a row's case."""
    lines = ["Targets, by the medians of this run"]
    env = document["environment"]
    if env["device"] == "cpu" and env["threads"] != 2:
        lines.append(f"  (they are stated for two threads; this run used {env['threads']})")
    if document["busy"]:
        during = document.get("other_work")
        seen = "" if during is None else f", {number(during)} cores during the timings"
        lines.append(
            f"  WARNING: other work ran here (load {env['load_average']:.1f} at the start{seen}): "
            "do not trust these"
        )
    for row in document["targets"]:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[row["met"]]
        value = f", measured {number(row['measured'])}" if row["met"] is not None else ""
        lines.append(f"  {verdict:12s} {row['target']}: {row['bound']} {row['need']:g}{value}")
    lost = document["losses"]
    lines += ["", f"Slower than a peer in {len(lost)} cases" + (":" if lost else "")]
    lines += [f"  LOST {line}" for line in lost]
    refused = [row for row in document["rows"] if row.get("refused")]
    lines.append(f"Refused by the gate: {len(refused)} rows" + (":" if refused else ""))
    lines += [f"  {row['contender']}, {where(row)}: {row['refused']}" for row in refused]
    return "\n".join(lines)


def title(what: str, env: dict, disturbed: bool = False) -> str:
    """The title of a plot: what, versions, hardware and commit."""
    gpu = env.get("gpu")
    where = gpu["name"] if gpu else f"{env['cpu']}, {env['threads']} threads"
    versions = env["versions"]
    text = (
        f"{what}: snnfast {versions['snnfast'] or ''} on {where}, torch {versions['torch']}, "
        f"commit {env['commit'][:12]}"
    )
    return text + ("\nOTHER WORK RAN ON THE MACHINE: DO NOT TRUST THESE" if disturbed else "")
