"""Corpora: what they hold, where they come from, how they reach the device."""
