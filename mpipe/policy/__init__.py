"""Decisions without processes or clocks: pure functions and values; time is passed in."""
