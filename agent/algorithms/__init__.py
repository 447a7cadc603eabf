"""Algorithms: what a run trains. `base.py` says what one must offer; each of the others is one."""
