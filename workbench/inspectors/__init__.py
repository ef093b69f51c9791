"""Inspectors return tables: what moved, where, by how much."""

from workbench.inspectors.drift import weight_drift

__all__ = ["weight_drift"]
