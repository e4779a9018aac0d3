"""Measurements: exact call counts that gate a change, and CPU ratios against the floor and the peers."""
