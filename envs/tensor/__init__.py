"""Environments that are static programs of tensor operations."""
