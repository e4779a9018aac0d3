"""`python -m bench`: one request, one decorated call and the rest, against bare code, a hand-written floor and the peers.

Calls are exact and gate a change. CPU is the median of interleaved rounds in one process, as a ratio: never compare
it between machines or runs; its bars gate under ``--times`` alone. Exits 1 when a bar does not hold, and where
``HEALTHOBS_MUST_HAVE_PEERS`` is set also when a peer is not there to be compared with.

Each stack is as its documentation says. The peers do less: none redacts, OpenTelemetry alone and logfire have neither
metrics to be scraped nor headers nor an access line. What waits to be exported is exported inside the round that made it.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from opentelemetry.sdk.trace.export import SpanExporter

from bench import apps, auditing, calls, costs, decorators, patients, peers
from bench.bars import Bar, at_most, verdict
from bench.exporting import Encoder

#: Most calls added to bare Flask.
MOST_CALLS = {"healthobs": 300, "healthobs, multiprocess": 330, "floor": 240}
MOST_EXCLUDED_CALLS = 15
#: All calls of a probe, which is answered without Flask.
MOST_PROBE_CALLS = 110
#: CPU added to bare Flask against what the floor adds: wanted, and what no run has come near.
WANTED_CPU, MOST_CPU = 1.25, 1.6
#: Calls of a decorated function beyond a bare closure's, and four signals against those by hand.
MOST_OFF_CALLS, MOST_DROPPED_CALLS, MOST_FOUR_SIGNALS = 0.1, 5.0, 1.2
MOST_IMPORT = 0.3
#: A scrape in which every series has a second view, against prometheus_client's without.
MOST_SCRAPE = 2.5
ROUNDS, REQUESTS, THREADS = 15, 100, 16

Builder = Callable[[SpanExporter | None], apps.Stack]


def builders() -> dict[str, Builder]:
    """Return what builds each stack, with spans going to an exporter or nowhere."""
    return {
        "bare Flask": apps.bare,
        "floor": apps.floor,
        "healthobs": apps.ours,
        "healthobs, unsampled": apps.ours_unsampled,
        **peers.stacks(),
    }


def cpu(
    actions: dict[str, Callable[[], None]],
    times: int = REQUESTS,
    ends: dict[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """Return CPU seconds of `times` runs of each action and of what `ends` them: the median of interleaved rounds."""
    rounds: dict[str, list[float]] = {name: [] for name in actions}
    gc.collect()
    gc.freeze()  # what the other stacks keep is nobody's cost
    for _ in range(ROUNDS):
        for name, action in actions.items():
            start = time.process_time()
            for _ in range(times):
                action()
            if ends is not None:
                ends[name]()
            rounds[name].append(time.process_time() - start)
    return {name: median(values) for name, values in rounds.items()}


def threaded(action: Callable[[], None]) -> Callable[[], None]:
    """Return a function that runs `action` once on each of 16 threads."""
    pool = ThreadPoolExecutor(THREADS)

    def run() -> None:
        for done in [pool.submit(action) for _ in range(THREADS)]:
            done.result()

    return run


def requests_table() -> tuple[dict[str, int], list[Bar]]:
    """Print one line a stack; return the calls that each adds to bare Flask, and the bars."""
    built = builders()
    plain = {name: apps.request(build(None)) for name, build in built.items()}
    exporting = {name: build(Encoder()) for name, build in built.items()}
    counted = {name: calls.count(action) for name, action in plain.items()}
    added = {name: count - counted["bare Flask"] for name, count in counted.items()}
    spent = [
        cpu(plain),
        cpu(
            {name: apps.request(stack) for name, stack in exporting.items()},
            ends={name: stack.flush for name, stack in exporting.items()},
        ),
        cpu({name: threaded(action) for name, action in plain.items()}, REQUESTS // THREADS),
    ]
    titles = ("calls added", "x bare CPU", "CPU / floor", "export on", "16 threads", "MiB", "scrape, ms")
    print(f"{'one request':<46}" + "".join(f"{title:>13}" for title in titles))
    for name in built:
        ratios = [(part[name] - part["bare Flask"]) / (part["floor"] - part["bare Flask"]) for part in spent]
        memory, scrape = costs.worker(name)
        print(
            f"{name:<46}{added[name]:>13}{spent[0][name] / spent[0]['bare Flask']:>13.2f}"
            + "".join(f"{ratio:>13.2f}" for ratio in ratios)
            + f"{memory:>13.1f}{'-' if scrape is None else format(scrape, '.0f'):>13}"
        )
    for name in peers.missing():
        print(f"{name:<46}{'not installed':>13}")
    print("(CPU / floor, export on, 16 threads: CPU added to bare Flask, against what the floor adds;")
    print(
        f" MiB: of a process with this stack alone; scrape: of {costs.SERIES} series of the application's)\n"
    )
    ratio = (spent[0]["healthobs"] - spent[0]["bare Flask"]) / (spent[0]["floor"] - spent[0]["bare Flask"])
    print(
        f"healthobs: {ratio:.2f} times the CPU that the floor adds, wanted {WANTED_CPU}, at most {MOST_CPU}"
    )
    bars = [at_most("healthobs, CPU against the floor's", ratio, MOST_CPU, timed=True)]
    bars += [
        Bar(
            added[name] > added["healthobs"],
            f"{name} adds {added[name]} calls, healthobs {added['healthobs']}",
        )
        for name in peers.stacks()
    ]
    if os.environ.get("HEALTHOBS_MUST_HAVE_PEERS"):
        bars += [Bar(False, f"{name}: not installed") for name in peers.missing()]
    return added, bars


def decorators_table() -> list[Bar]:
    """Print one line a case and return the bars."""
    cases = decorators.cases()
    spent = cpu({name: action for name, (action, _, _) in cases.items()}, 20)
    counted = {name: calls.count(action) / 100 for name, (action, _, _) in cases.items()}
    print(f"{'one decorated call':<46}{'calls':>13}{'CPU ratio':>13}{'wanted':>13}  against")
    for name, (_, base, most) in cases.items():
        print(f"{name:<46}{counted[name]:>13.1f}{spent[name] / spent[base]:>13.2f}{most or '-':>13}  {base}")
    print()
    closure = counted["closure"]
    most_calls = {
        "@observe, nothing installed": closure + MOST_OFF_CALLS,
        "@observe, disabled=True installed": closure + MOST_OFF_CALLS,
        "@traced, nothing installed": closure + MOST_OFF_CALLS,
        "@traced under an unsampled local parent": closure + MOST_DROPPED_CALLS,
        "@observe, four signals": counted["hand-written, four signals"] * MOST_FOUR_SIGNALS,
    }
    return [at_most(f"{name}, calls", counted[name], most) for name, most in most_calls.items()]


def others() -> list[Bar]:
    """Print the rest and return the bars."""
    plain, ours = costs.scrape()
    print(
        f"a scrape of {costs.SERIES} series that all have a second view: {ours:.0f} ms, prometheus_client alone, "
        f"without the second, {plain:.0f} ms"
    )
    bars = auditing.report()
    imported = costs.import_ratio()
    print(f"import healthobs, beyond its dependencies: {imported:.2f} of theirs, at most {MOST_IMPORT}")
    return [
        *bars,
        at_most("a scrape against prometheus_client's", ours / plain, MOST_SCRAPE, timed=True),
        at_most("import healthobs", imported, MOST_IMPORT, timed=True),
        *patients.report(),
    ]


def main() -> int:
    """Measure, print, and hold the bars."""
    added, bars = requests_table()
    added["healthobs, multiprocess"] = costs.multiprocess_calls()
    probe = calls.count(apps.request(apps.ours(), "/health"))
    by_hand = calls.count(apps.request(apps.with_health_view(), "/health"))
    excluded = calls.count(apps.request(apps.ours(excluded=("/items/1",)))) - calls.count(
        apps.request(apps.bare())
    )
    print(f"healthobs, multiprocess: {added['healthobs, multiprocess']} calls added")
    print(f"/health: {probe} calls in all, a Flask view of it {by_hand}; an excluded path adds {excluded}\n")
    bars += [at_most(f"{name}, calls added", added[name], most) for name, most in MOST_CALLS.items()]
    bars += [
        at_most("a probe, calls", probe, MOST_PROBE_CALLS),
        at_most("an excluded path, calls added", excluded, MOST_EXCLUDED_CALLS),
    ]
    bars += decorators_table()
    bars += others()
    return verdict(bars, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
