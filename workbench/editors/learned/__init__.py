"""Editors that learn to edit: what they are taught, trained with and judged by."""
