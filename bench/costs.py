"""What is not one request: memory of a worker, a scrape, an import. Each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap

#: Series of a big service.
SERIES = 5_000


def in_own_process(code: str, **environment: str) -> str:
    """Run code in a process that has done nothing else, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def multiprocess_calls() -> int:
    """Count in a process of its own, because prometheus_client chooses its values at import."""
    with tempfile.TemporaryDirectory() as folder:
        code = """
            from bench import apps, calls
            print(calls.count(apps.request(apps.ours())) - calls.count(apps.request(apps.bare())))
        """
        return int(in_own_process(code, PROMETHEUS_MULTIPROC_DIR=folder))


def worker(stack: str) -> tuple[float, float | None]:
    """Return what a process that serves `stack` and nothing else costs.

    Returns:
        Its resident memory in MiB after a thousand requests; and the CPU milliseconds of a scrape with 5,000 series of the
        application's own, the least of some, where the stack has metrics to be scraped.
    """
    known = {
        "bare Flask": "bare",
        "floor": "floor",
        "healthobs": "ours",
        "healthobs, unsampled": "ours_unsampled",
    }
    build = f"apps.{known[stack]}" if stack in known else f"peers.PEERS[{stack!r}][1]"
    code = f"""
        from bench import apps
        {"pass" if stack in known else "from bench import peers"}
        stack = {build}()
        run = apps.request(stack)
        for _ in range(1000):
            run()
        fields = open("/proc/self/status").read().split()
        print(int(fields[fields.index("VmRSS:") + 1]) / 1024)
        if stack.registry is not None:
            import time
            from prometheus_client import Histogram, generate_latest
            own = Histogram("own_seconds", "", ("route",), buckets=(0.1, 1.0), registry=stack.registry)
            for number in range({SERIES} // 5):
                own.labels(str(number)).observe(0.5)
            scrape = apps.request(stack, stack.scrape) if stack.scrape else lambda: generate_latest(stack.registry)
            least = 9.0
            for _ in range(7):
                start = time.process_time()
                scrape()
                least = min(least, time.process_time() - start)
            print(least * 1000)
    """
    memory, *scrape = map(float, in_own_process(code).split())
    return memory, scrape[0] if scrape else None


def scrape() -> tuple[float, float]:
    """Return the CPU milliseconds of 5,000 series: prometheus_client alone, and ours where each has its second view too."""
    code = f"""
        import time
        from prometheus_client import generate_latest
        from healthobs import Settings
        from healthobs.metrics import Metrics, PrefixCollector
        metrics = Metrics(Settings(max_series={SERIES}))
        histogram = metrics.histogram("h_seconds", "", ("route",), buckets=(0.1, 1.0))
        for number in range({SERIES} // 5):
            histogram.labels(str(number)).observe(0.5)
        metrics.show_also_as(PrefixCollector("h_seconds", "own_seconds", "", dict(route="endpoint")))
        def spent(action):
            best = 9.0
            for _ in range(7):
                start = time.process_time()
                action()
                best = min(best, time.process_time() - start)
            return best * 1000
        plain = spent(lambda: generate_latest(metrics.registry))
        print(plain, spent(lambda: metrics.exposition(None)))
    """
    plain, ours = in_own_process(code).split()
    return float(plain), float(ours)


def import_ratio() -> float:
    """Return what `import healthobs` costs beyond what it imports of others, as a share of that.

    From bytecode, as an installation has it: where an environment compiles nothing (``PYTHONDONTWRITEBYTECODE``), the time to
    read sources would stand on both sides. The least of many rounds, for each side: a busy machine only ever adds
    (on one machine, in one hour: the median ratio of nine rounds 0.17 to 0.40, this 0.13 to 0.27).
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        others = in_own_process(
            """
            import sys
            before = set(sys.modules)
            import healthobs
            print(*[n for n in sys.modules if n not in before and n.split(".")[0] != "healthobs" and "__mp" not in n])
            """,
            **compiled,
        ).split()
        timed = "import time; start = time.process_time(); {}; print(time.process_time() - start)"
        theirs = timed.format(f"[__import__(name) for name in {others!r}]")
        ours = timed.format("import healthobs")
        rounds = [
            (float(in_own_process(theirs, **compiled)), float(in_own_process(ours, **compiled)))
            for _ in range(25)
        ]
    return min(whole for _, whole in rounds) / min(part for part, _ in rounds) - 1
