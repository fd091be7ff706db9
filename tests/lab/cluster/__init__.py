"""Tests that share one lab."""
