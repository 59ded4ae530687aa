"""Scenario: who holds what."""
