"""Faults, tried on the real parts: `python -m bench.faults.NAME` starts a service, breaks something under it, and
prints what its clients saw. The exit code is 1 where the service did not keep its promise. Linux only."""
