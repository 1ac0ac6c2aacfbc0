"""``fewstep bench``: students by steps by seeds against the teacher and the undistilled network.

``run_bench`` does it all; ``fewstep.bench.contact.contact_sheet`` draws pictures for a suite.
"""

from __future__ import annotations

from fewstep.bench.run import Report, run_bench

__all__ = ["Report", "run_bench"]
