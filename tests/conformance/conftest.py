"""Collect the conformance tests only where `tests.conformance.fetch` has downloaded the tests of `transformers`."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest

from tests.conformance.fetch import PACKAGE

collect_ignore_glob = [] if PACKAGE.is_dir() else ["test_*.py"]
os.environ["RUN_SLOW"] = "1"  # transformers skips its slow tests otherwise
UPSTREAM_MARKERS = """
accelerate_tests flash_attn_test flash_attn_3_test flash_attn_4_test is_training_test torch_compile_test
"""


def pytest_configure(config: pytest.Config) -> None:
    for marker in UPSTREAM_MARKERS.split():
        config.addinivalue_line("markers", f"{marker}: set by transformers")


def pytest_report_header() -> str | None:
    return None if PACKAGE.is_dir() else f"{PACKAGE} is missing; run python -m tests.conformance.fetch"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the skipped tests by reason, and who decided it."""
    tests_by_reason = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        tests_by_reason[reason].append(report.nodeid.split("::")[-1])
    for ours, title in [(True, "skipped by our tables"), (False, "skipped by transformers")]:
        reasons = {key: value for key, value in tests_by_reason.items() if key.startswith("not applicable") is ours}
        if not reasons:
            continue
        terminalreporter.write_sep("=", f"{sum(map(len, reasons.values()))} {title}")
        for reason, tests in sorted(reasons.items()):
            terminalreporter.write_line(f"{len(tests):4} {reason}: {', '.join(sorted(set(tests)))}")
